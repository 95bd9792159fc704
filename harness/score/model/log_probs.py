"""Log-probabilities of every token of a text, one forward pass per text.

Logits are made in slices and raised to float32 before the softmax: in bfloat16
Min-40% is off in the third decimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.score.model.batching import chunks
from harness.score.model.logits import LogitSource

_SLICE_ELEMENTS = 8_388_608
"""Logits made at a time: 32 MB in float32; with fewer the output layer is read too often."""

_READ_ELEMENTS = 1_048_576
"""Logits judged at a time: their tables, 4 MB each, fit a CPU's cache."""

_SHARE = 32
"""Weights for each logit made at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogProbs:
    """What one text's tokens looked like to the model, all lists of equal length.

    Attributes:
        logprobs: log p(x_t | x_<t), nats.
        means: Mean of the log-probability under the model's own distribution.
        stds: Standard deviation of the same.
        correct: Whether x_t was the model's first choice.
    """

    logprobs: list[float]
    means: list[float]
    stds: list[float]
    correct: list[bool]


class Scorer:
    """Scores batches of token sequences with one causal language model."""

    def __init__(self, source: LogitSource) -> None:
        self._source = source

    def __call__(self, sequences: Sequence[Sequence[int]], first: Sequence[int]) -> list[TokenLogProbs]:
        """Returns the statistics of each sequence's tokens from ``first`` on.

        Args:
            sequences: Token ids; every sequence has at least ``first`` + 1.
            first: Position of each sequence's first scored token, at least 1.
        """
        import torch

        device = self._source.device
        # Padding stands right of a causal model's tokens, where none of them looks: no mask is needed.
        ids = right_padded(sequences)
        scored = [slice(start, len(sequence)) for start, sequence in zip(first, sequences, strict=True)]
        rows = torch.cat([torch.full((part.stop - part.start,), row) for row, part in enumerate(scored)])
        positions = torch.cat([torch.arange(part.start, part.stop) for part in scored])
        targets = ids[rows, positions]
        with torch.inference_mode():
            read = self._source.read(ids.to(device))
            columns = statistics(self._source, read, rows.to(device), positions.to(device) - 1, targets.to(device))
        sizes = [part.stop - part.start for part in scored]
        split = [[part.tolist() for part in column.cpu().split(sizes)] for column in columns]
        return [
            TokenLogProbs(
                logprobs=lp, means=mean, stds=std, correct=[a == b for a, b in zip(choice, target, strict=True)]
            )
            for lp, mean, std, choice, target in zip(*split, (t.tolist() for t in targets.split(sizes)), strict=True)
        ]


def right_padded(sequences: Sequence[Sequence[int]]) -> Any:
    """Returns token ids [rows, longest], zeros after each row's own."""
    import torch

    ids = torch.zeros((len(sequences), max(map(len, sequences))), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return ids


def statistics(source: LogitSource, read: Any, rows: Any, positions: Any, targets: Any) -> tuple[Any, Any, Any, Any]:
    """Returns what the logits at n places say of n tokens, slice by slice.

    Args:
        source: The model that ``read`` comes from.
        read: What its ``read`` gave, [rows, width, ...].
        rows: Row of each place, [n].
        positions: Position of each place, [n].
        targets: Token that is judged at each place, [n].

    Returns:
        Four tensors [n]: the token's log-probability, mean and standard
        deviation of the log-probability under the distribution there (all
        float32, in nats), and the most likely token.
    """
    import torch

    parts = []
    # A small model's tables must be small beside its weights, too.
    most = source.parameters // _SHARE
    for part in chunks(len(targets), max(1, min(_SLICE_ELEMENTS, most) // source.vocabulary)):
        logits, judged = source.logits(read[rows[part], positions[part]]), targets[part]
        size = max(1, _READ_ELEMENTS // source.vocabulary) if logits.device.type == "cpu" else len(judged)
        parts += [of_logits(logits[piece], judged[piece]) for piece in chunks(len(judged), size)]
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return columns[0], columns[1], columns[2], columns[3]


def of_logits(logits: Any, targets: Any) -> tuple[Any, Any, Any, Any]:
    """Returns ``statistics``' four tensors for logits [n, vocabulary]."""
    import torch

    most, choices = logits.max(dim=-1, keepdim=True)
    # Distances to the most likely token: sums of their exponentials can't overflow, and need one table besides.
    below = logits.float() - most.float()
    of_targets = below.gather(1, targets[:, None])[:, 0]
    weights = below.exp()
    total = weights.sum(dim=-1)
    # p log p is 0 in the limit; with a log-probability of -inf it would be NaN.
    below.clamp_(min=torch.finfo(below.dtype).min)
    first = weights.mul_(below).sum(dim=-1) / total
    second = torch.linalg.vecdot(weights, below) / total
    log_total = total.log()
    stds = (second - first.square()).clamp(min=0).sqrt()
    return of_targets - log_total, first - log_total, stds, choices[:, 0]
