"""How many texts are scored side by side on a CPU, each by one thread instead of all threads on one text.

Two threads share a text's matrix products badly. Measured on two cores, texts
of 1,822 tokens through SmolLM2-135M: 5.1 s of wall time a text with two
threads on each, 4.3 s with two texts on one thread each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from harness.score.model.logits import LogitSource

Item = TypeVar("Item")
Result = TypeVar("Result")

_LARGE = 2**26
"""Parameters from which on a few texts' activations are small beside the weights."""


def lanes_of(source: LogitSource) -> int:
    """Returns how many texts a model is given at a time: torch's threads on a CPU, one elsewhere.

    One, too, where weights are read from disk: threads would drop each other's.
    """
    import torch

    alone = source.device.type != "cpu" or source.parameters < _LARGE or not source.in_memory
    return 1 if alone else torch.get_num_threads()


def side_by_side(work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], lanes: int) -> list[Result]:
    """Returns ``work``'s results for all items, which are dealt to as many threads, each with one of torch's.

    Args:
        work: Takes some items and returns one result each; called from several
            threads at once.
        items: In the order of the results.
        lanes: Most threads.
    """
    import torch

    lanes = min(lanes, len(items))
    if lanes < 2:
        return list(work(items))
    threads = torch.get_num_threads()

    def alone(part: Sequence[Item]) -> Sequence[Result]:
        torch.set_num_threads(1)
        return work(part)

    parts = [items[lane::lanes] for lane in range(lanes)]
    try:
        with ThreadPoolExecutor(lanes) as pool:
            done = list(pool.map(alone, parts))
    finally:
        # What a thread sets is the whole process's for some of torch's libraries.
        torch.set_num_threads(threads)
    results: list[Any] = [None] * len(items)
    for lane, part in enumerate(done):
        results[lane::lanes] = part
    return results
