"""Cuts texts into token windows, and plans which windows share a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from harness.errors import InputError
from harness.unlearn.losses import IGNORED

Window = dict[str, Any]


def text_windows(texts: Sequence[str], tokenizer: Any, window: int, *, end: bool = True) -> list[Window]:
    """Returns windows of at most ``window`` tokens over all texts in order.

    The stream is ``[BOS] text EOS`` for each text (no BOS where the tokenizer
    adds none, no EOS where it has none or ``end`` is false), cut without gaps. The last window may
    be shorter: it is padded on the right to the others' length, with labels
    -100 and attention 0 there. A single token at the end, which nothing
    predicts, is left out.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, int64 [window] each,
        and ``number``, the window's position.

    Raises:
        InputError: There is no text, or fewer than two tokens of it.
    """
    import torch

    last = [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
    stream: list[int] = []
    # One by one: a whole corpus at once trips the tokenizer's length warning.
    for text in texts:
        stream += tokenizer(text, truncation=False, verbose=False)["input_ids"] + last
    if len(stream) < 2:
        raise InputError("There is no text to train on: give at least one text that is not empty.")
    size = min(window, len(stream))
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    windows: list[Window] = []
    for start in range(0, len(stream) - 1, size):
        tokens = stream[start : start + size]
        missing = size - len(tokens)
        windows.append(
            {
                "input_ids": torch.tensor(tokens + [filler] * missing),
                "attention_mask": torch.tensor([1] * len(tokens) + [0] * missing),
                "labels": torch.tensor(tokens + [IGNORED] * missing),
                "number": torch.tensor(len(windows)),
            }
        )
    return windows


def _endless(count: int, rng: Random) -> Iterator[int]:
    while True:
        yield from rng.sample(range(count), count)


def pair_batches(forget: Sequence[Window], retain: Sequence[Window], *, batch_size: int, epochs: int, max_steps: int,
                 seed: int) -> list[dict[str, Any]]:  # fmt: skip
    """Returns one batch per step: forget windows, each with a retain window.

    An epoch passes every forget window once in a fresh order (its last batch
    may be smaller); the retain windows pass by in a shuffled cycle of their
    own. Keys are ``forget_*`` and, when there are retain windows, ``retain_*``,
    each [batch, ...].
    """
    rng = Random(f"unlearn/{seed}")
    partners = _endless(len(retain), rng)
    batches: list[dict[str, Any]] = []
    for _ in range(epochs):
        order = rng.sample(range(len(forget)), len(forget))
        for start in range(0, len(order), batch_size):
            if max_steps and len(batches) == max_steps:
                return batches
            chosen = order[start : start + batch_size]
            batch = _stack("forget", [forget[index] for index in chosen])
            if retain:
                batch |= _stack("retain", [retain[next(partners)] for _ in chosen])
            batches.append(batch)
    return batches


def _stack(side: str, windows: list[Window]) -> dict[str, Any]:
    import torch

    return {f"{side}_{key}": torch.stack([window[key] for window in windows]) for key in windows[0]}
