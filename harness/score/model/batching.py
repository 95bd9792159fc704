"""Cuts work into batches of about equal memory, and into smaller ones where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from harness.errors import ScoringError

Result = TypeVar("Result")

DEFAULT_TOKENS = 16_384
"""Padded tokens per batch to begin with: small next to the weights of models that need it small."""

CPU_TOKENS = 12_288
"""Tokens of rows that are continued together on a CPU, where memory is the machine's own.

Ten of VerbMem's NEWS prompts: a pass over two tokens of each takes 24 ms a row,
of four tokens of six rows 43 ms, of two of sixteen rows 21 ms (SmolLM2, CPU time).
"""

CACHED_TOKENS = 2_048
"""Tokens of one plain forward pass on a CPU, where activations that fit its caches are faster."""

_MEMORY_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory")


class Batches:
    """Batch sizes by token budget; the budget is halved for good when memory runs out.

    Attributes:
        max_rows: Most rows of a batch, None where only the budget limits them.
        tokens: Padded tokens of a batch.
    """

    def __init__(self, *, max_rows: int | None = None, tokens: int = DEFAULT_TOKENS) -> None:
        self.max_rows = max_rows
        self.tokens = tokens

    def run(
        self, lengths: Sequence[int], work: Callable[[list[int]], Sequence[Result]],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Result]:  # fmt: skip
        """Returns ``work``'s result for every row, in the rows' own order.

        Rows of similar length go together, the longest first, so that a batch
        that is too large shows at once.

        Args:
            lengths: Tokens of each row, generated ones included.
            work: Takes row numbers, returns one result each.
            on_progress: Told how many rows of how many are done.

        Raises:
            ScoringError: Memory does not suffice for one row.
        """
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        results: dict[int, Result] = {}
        while order:
            rows = self._take(order, lengths)
            try:
                done = work(rows)
            except RuntimeError as error:
                if not any(message in str(error).lower() for message in _MEMORY_MESSAGES):
                    raise
                self._shrink(rows, lengths)
                continue
            results.update(zip(rows, done, strict=True))
            order = order[len(rows) :]
            if on_progress is not None:
                on_progress(len(results), len(lengths))
        return [results[row] for row in range(len(lengths))]

    def _take(self, order: Sequence[int], lengths: Sequence[int]) -> list[int]:
        most = max(1, self.tokens // max(1, lengths[order[0]]))
        most = min(most, self.max_rows or most)
        # Rows share what a pass costs: of eight rows where six fit, two batches of four are the faster ones.
        batches = -(-len(order) // most)
        return list(order[: -(-len(order) // batches)])

    def _shrink(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        if len(rows) == 1:
            raise ScoringError(
                f"The device's memory does not suffice for one text of {lengths[rows[0]]} tokens: use a larger device."
            ) from None
        self.tokens = lengths[rows[0]] * (len(rows) // 2)
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def chunks(total: int, size: int) -> Iterator[slice]:
    """Yields slices that cover ``range(total)`` in steps of at most ``size``."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def chunks_by_budget(lengths: Sequence[int], budget: int) -> Iterator[slice]:
    """Yields slices of consecutive rows that take at most ``budget`` tokens when padded, at least one row each."""
    start = 0
    while start < len(lengths):
        end, longest = start + 1, lengths[start]
        while end < len(lengths) and max(longest, lengths[end]) * (end + 1 - start) <= budget:
            longest = max(longest, lengths[end])
            end += 1
        yield slice(start, end)
        start = end
