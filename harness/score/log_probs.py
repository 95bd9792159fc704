"""Log-probabilities of every token of a text, one forward pass per text.

A [tokens, vocabulary] table in float32 is the largest thing in a scoring run
(1 GB for 8,000 tokens of a 32,000 vocabulary), so hidden states go through the
output layer in slices. Logits are raised to float32 before the softmax: in
bfloat16 Min-40% is off in the third decimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.score.batching import chunks

_SLICE_ELEMENTS = 4_194_304
"""Logits per slice: 16 MB in float32."""


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
    """Scores batches of token sequences with one causal language model.

    Where the logits are exactly the output layer applied to the last hidden
    state (checked once on a few tokens), they are made slice by slice; models
    that scale or cap their logits are asked for whole logits instead.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._decoder, self._head = _decoder_and_head(model)

    @property
    def slices_logits(self) -> bool:
        """Whether logits are made slice by slice."""
        return self._head is not None

    def __call__(self, sequences: Sequence[Sequence[int]], first: Sequence[int]) -> list[TokenLogProbs]:
        """Returns the statistics of each sequence's tokens from ``first`` on.

        Args:
            sequences: Token ids; every sequence has at least ``first`` + 1.
            first: Position of each sequence's first scored token, at least 1.
        """
        import torch

        width = max(map(len, sequences))
        device = self._model.device
        # Padding stands right of a causal model's tokens, where none of them looks: no mask is needed.
        ids = torch.zeros((len(sequences), width), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        scored = [slice(start, len(sequence)) for start, sequence in zip(first, sequences, strict=True)]
        rows = torch.cat([torch.full((part.stop - part.start,), row) for row, part in enumerate(scored)])
        positions = torch.cat([torch.arange(part.start, part.stop) for part in scored])
        targets = ids[rows, positions].to(device)
        with torch.inference_mode():
            columns = self._statistics(ids.to(device), rows.to(device), positions.to(device), targets)
        sizes = [part.stop - part.start for part in scored]
        split = [[part.tolist() for part in column.cpu().split(sizes)] for column in columns]
        return [
            TokenLogProbs(logprobs=lp, means=mean, stds=std, correct=right)
            for lp, mean, std, right in zip(*split, strict=True)
        ]

    def _statistics(self, ids: Any, rows: Any, positions: Any, targets: Any) -> list[Any]:
        import torch

        if self._head is None:
            source = self._model(input_ids=ids, use_cache=False).logits
            vocabulary = source.shape[-1]
        else:
            source = self._decoder(input_ids=ids, use_cache=False).last_hidden_state
            vocabulary = self._head.weight.shape[0]
        parts = []
        for part in chunks(len(targets), max(1, _SLICE_ELEMENTS // vocabulary)):
            taken = source[rows[part], positions[part] - 1]
            parts.append(_of_logits(taken if self._head is None else self._head(taken), targets[part]))
        return [torch.cat(column) for column in zip(*parts, strict=True)]


def _of_logits(logits: Any, targets: Any) -> tuple[Any, Any, Any, Any]:
    import torch

    correct = logits.argmax(dim=-1) == targets
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    of_targets = logprobs.gather(1, targets[:, None])[:, 0]
    probabilities = logprobs.exp()
    # p log p is 0 in the limit; with a log-probability of -inf it would be NaN.
    logprobs.clamp_(min=torch.finfo(logprobs.dtype).min)
    weighted = probabilities.mul_(logprobs)
    means = weighted.sum(dim=-1)
    squares = weighted.mul_(logprobs).sum(dim=-1)
    stds = (squares - means.square()).clamp(min=0).sqrt()
    return of_targets, means, stds, correct


def _decoder_and_head(model: Any) -> tuple[Any, Any]:
    """Returns decoder and output layer, or (None, None) where they don't make up the logits alone."""
    import torch

    head = model.get_output_embeddings()
    decoder = getattr(model, "base_model", None)
    if head is None or decoder is None or decoder is model or not hasattr(head, "weight"):
        return None, None
    probe = torch.arange(4, device=model.device)[None] % head.weight.shape[0]
    with torch.inference_mode():
        try:
            sliced = head(decoder(input_ids=probe, use_cache=False).last_hidden_state)
            whole = model(input_ids=probe, use_cache=False).logits
        except (AttributeError, TypeError):
            return None, None
    same = sliced.shape == whole.shape and torch.allclose(sliced, whole, rtol=1e-3, atol=1e-3, equal_nan=True)
    return (decoder, head) if same else (None, None)
