"""Greedy continuation of many prompts at once, the tokens those of the plain one-by-one loop.

Prompts of similar length share a left-padded batch. Tokens that all prompts
begin with (KnowMem's in-context pairs) are run once and their keys and values
copied. Each row ends by itself; rows that have ended leave the batch.

Differs from ``transformers.generate``: the submission's ``generation_config``
has no say (a repetition penalty in it would survive ``do_sample=False``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from harness.score.batching import Batches

MIN_SHARED = 16
"""Fewest tokens in common for which sharing pays."""

_MIN_ROWS_TO_DROP = 8

StopCheck = Callable[[list[list[int]]], list[bool]]


class GreedyGenerator:
    """Continues prompts with the most likely token, again and again.

    Args:
        model: Causal language model of transformers, in evaluation mode.
        end_ids: Tokens that end a row.
        batches: Sizes of batches.
    """

    def __init__(self, model: Any, *, end_ids: Sequence[int], batches: Batches) -> None:
        self._model = model
        self._end_ids = frozenset(end_ids)
        self._batches = batches
        known = inspect.signature(model.forward).parameters
        # transformers renamed the argument in 5.24.
        self._cache_name = "cache" if "cache" in known else "past_key_values"
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def __call__(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, is_stopped: StopCheck | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """Returns the new tokens of every prompt; an end token is not among them.

        Args:
            prompts: Token ids, at least one per prompt.
            max_new_tokens: Most tokens to add to a prompt.
            is_stopped: Given the new tokens of some rows, tells which of them
                need no more.
            on_progress: Told how many prompts of how many are done.
        """
        import torch

        if not prompts:
            return []
        shared = _shared_length(prompts)
        with torch.inference_mode():
            prefix = self._run_prefix(prompts[0][:shared]) if shared >= MIN_SHARED and len(prompts) > 1 else None
            shared = shared if prefix is not None else 0

            def work(rows: list[int]) -> list[list[int]]:
                tails = [list(prompts[row][shared:]) for row in rows]
                return self._continue(tails, shared, prefix, max_new_tokens, is_stopped)

            return self._batches.run([len(prompt) + max_new_tokens for prompt in prompts], work, on_progress)

    def _run_prefix(self, ids: Sequence[int]) -> list[tuple[Any, Any]] | None:
        import torch
        from transformers.cache_utils import DynamicCache, DynamicLayer

        cache = DynamicCache(config=self._model.config)
        self._step(torch.tensor([list(ids)], device=self._model.device), cache)
        # Windows and recurrent states can't be copied as keys and values; such models share nothing.
        if not all(type(layer) is DynamicLayer for layer in cache.layers):
            return None
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _step(self, ids: Any, cache: Any, **where: Any) -> Any:
        """Runs new tokens through the model; returns the last position's logits [rows, vocabulary]."""
        output = self._model(input_ids=ids, use_cache=True, **{self._cache_name: cache}, **self._last_only, **where)
        return output.logits[:, -1].float()

    def _continue(
        self, tails: list[list[int]], shared: int, prefix: list[tuple[Any, Any]] | None, max_new_tokens: int,
        is_stopped: StopCheck | None,
    ) -> list[list[int]]:  # fmt: skip
        import torch
        from transformers.cache_utils import DynamicCache

        device, rows = self._model.device, len(tails)
        width = max(map(len, tails))
        ids = torch.zeros((rows, width), dtype=torch.long)
        mask = torch.zeros((rows, width), dtype=torch.long)
        for row, tail in enumerate(tails):
            ids[row, width - len(tail) :] = torch.tensor(tail, dtype=torch.long)
            mask[row, width - len(tail) :] = 1
        if prefix is None:
            cache = DynamicCache(config=self._model.config)
        else:
            cache = DynamicCache([tuple(part.expand(rows, -1, -1, -1) for part in layer) for layer in prefix])
        positions = shared + (mask.cumsum(dim=1) - 1).clamp(min=0)
        mask = torch.cat([torch.ones((rows, shared), dtype=torch.long), mask], dim=1).to(device)
        ids, positions = ids.to(device), positions.to(device)
        new: list[list[int]] = [[] for _ in tails]
        alive = list(range(rows))
        for step in range(max_new_tokens):
            logits = self._step(ids, cache, attention_mask=mask, position_ids=positions)
            chosen = logits.argmax(dim=-1)
            goes_on = self._append(new, alive, chosen.tolist(), is_stopped)
            if not any(goes_on) or step == max_new_tokens - 1:
                break
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            if len(alive) >= _MIN_ROWS_TO_DROP and sum(goes_on) <= len(alive) // 2:
                kept = torch.tensor([i for i, goes in enumerate(goes_on) if goes], device=device)
                cache.batch_select_indices(kept)
                ids, positions, mask = ids[kept], positions[kept], mask[kept]
                alive = [row for row, goes in zip(alive, goes_on, strict=True) if goes]
            else:
                alive = [row if goes else -1 for row, goes in zip(alive, goes_on, strict=True)]
            mask = torch.cat([mask, mask.new_ones((len(mask), 1))], dim=1)
        return new

    def _append(
        self, new: list[list[int]], alive: Sequence[int], chosen: Sequence[int], is_stopped: StopCheck | None
    ) -> list[bool]:
        """Adds one token to every row that still runs; returns which rows go on (-1 marks ended ones)."""
        goes_on = [row >= 0 and token not in self._end_ids for row, token in zip(alive, chosen, strict=True)]
        running = [i for i, goes in enumerate(goes_on) if goes]
        for i in running:
            new[alive[i]].append(chosen[i])
        if is_stopped is not None and running:
            for i, stopped in zip(running, is_stopped([new[alive[i]] for i in running]), strict=True):
                goes_on[i] = not stopped
        return goes_on


def _shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all prompts begin with, leaving each at least one of its own."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    most = min(map(len, prompts)) - 1
    for position in range(most):
        if first[position] != last[position]:
            return position
    return most
