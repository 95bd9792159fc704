"""Greedy continuation of many prompts at once, the tokens those of the plain one-by-one loop.

What makes it fast, none of which changes a token in float32:

- Tokens that all prompts begin with (KnowMem's in-context pairs) are run once.
- Prompts are run a few at a time, without a mask, into memory that is reserved
  for the whole batch.
- Guesses are checked in one pass, first the continuation that a memorizing
  model would give, then what was written before: the tokens up to the first
  wrong one are the model's own choices.
- Each row ends by itself; rows that have ended leave the batch.

Models that keep only a window of keys and values, or a recurrent state, and
those that get no positions are continued by ``transformers.generate``.

Source: greedy speculative decoding (Leviathan et al., 2023), with a given text
in the place of a second model.
Differs from ``transformers.generate``: the submission's ``generation_config``
has no say (a repetition penalty in it would survive ``do_sample=False``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from harness.score.model.batching import Batches
from harness.score.model.decoding import RowBatch, StopCheck, written
from harness.score.model.kv_cache import contents, plain_cache
from harness.score.model.log_probs import TokenLogProbs
from harness.score.model.logits import LogitSource

MIN_SHARED = 16
"""Fewest tokens in common for which sharing pays."""

DraftReport = Callable[[int, TokenLogProbs], None]


class GreedyGenerator:
    """Continues prompts with the most likely token, again and again.

    Args:
        source: The causal language model.
        end_ids: Tokens that end a row.
        batches: Sizes of batches.
        prompt_tokens: Prompt tokens that are run in one pass.
    """

    def __init__(
        self, source: LogitSource, *, end_ids: Sequence[int], batches: Batches, prompt_tokens: int = 8_192
    ) -> None:
        self._source = source
        self._end_ids = frozenset(end_ids)
        self._batches = batches
        self._prompt_tokens = prompt_tokens

    def __call__(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, drafts: Sequence[Sequence[int]] | None = None,
        is_stopped: StopCheck | None = None, on_draft: DraftReport | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """Returns the new tokens of every prompt; an end token is not among them.

        Args:
            prompts: Token ids, at least one per prompt.
            max_new_tokens: Most tokens to add to a prompt.
            drafts: For every prompt the tokens that may well follow, possibly none.
            is_stopped: Given the new tokens of some rows, tells which of them
                need no more.
            on_draft: Told a prompt's number and how the model judges its whole
                draft; not called for models without plain keys and values.
            on_progress: Told how many prompts of how many are done.
        """
        import torch

        if not prompts:
            return []
        drafts = drafts or [()] * len(prompts)
        lengths = [len(p) + len(d) + max_new_tokens for p, d in zip(prompts, drafts, strict=True)]
        with torch.inference_mode():
            if not self._keeps_everything(max(lengths)):

                def hand_over(rows: list[int]) -> list[list[int]]:
                    picked = [prompts[row] for row in rows]
                    return _continue_by_library(self._source, picked, max_new_tokens, self._end_ids, is_stopped)

                return self._batches.run(lengths, hand_over, on_progress)
            shared = _shared_length(prompts) if len(prompts) > 1 else 0
            prefix = self._run_prefix(prompts[0][:shared]) if shared >= MIN_SHARED else None

            def continue_rows(rows: list[int]) -> list[list[int]]:
                tails = [prompts[row][shared if prefix else 0 :] for row in rows]
                batch = RowBatch(self._source, prefix, tails, [drafts[row] for row in rows], max_new_tokens)
                found, judged = batch.run(self._prompt_tokens, self._end_ids, is_stopped)
                if on_draft is not None:
                    for row, one in zip(rows, judged, strict=True):
                        on_draft(row, one)
                return found

            return self._batches.run(lengths, continue_rows, on_progress)

    def _keeps_everything(self, tokens: int) -> bool:
        """Returns whether every layer keeps the keys and values of all of a row's tokens."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        config = self._source.model.config.get_text_config(decoder=True)
        if getattr(config, "num_kv_shared_layers", 0) or getattr(self._source.model, "_is_stateful", False):
            return False
        if not self._source.takes_places or getattr(config, "alibi", False):
            return False
        layers = DynamicCache(config=config).layers
        return all(type(x) is DynamicLayer or getattr(x, "sliding_window", 0) > tokens for x in layers)

    def _run_prefix(self, ids: Sequence[int]) -> list[tuple[Any, Any]] | None:
        import torch

        if not self._keeps_everything(len(ids)):
            return None
        cache = plain_cache()
        with torch.inference_mode():
            self._source.fill(torch.tensor([list(ids)], device=self._source.device), cache)
        return contents(cache)


def _continue_by_library(
    source: LogitSource, prompts: Sequence[Sequence[int]], max_new_tokens: int, end_ids: frozenset[int],
    is_stopped: StopCheck | None,
) -> list[list[int]]:  # fmt: skip
    """Returns the new tokens of prompts from ``transformers.generate``, rows ending one by one."""
    import torch
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    class RowStop(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            rows = input_ids[:, width:].tolist()
            found = is_stopped(rows) if is_stopped else [False] * len(rows)
            return torch.tensor(found, device=input_ids.device)

    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=sorted(end_ids) or None,
        pad_token_id=0,
    )
    found = source.model.generate(
        ids.to(source.device), attention_mask=mask.to(source.device), generation_config=settings,
        stopping_criteria=StoppingCriteriaList([RowStop()]),
    )  # fmt: skip
    new: list[list[int]] = [[] for _ in prompts]
    # What a row got after its end is padding.
    written(new, range(len(prompts)), found[:, width:].tolist(), max_new_tokens, end_ids, is_stopped)
    return new


def _shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all prompts begin with, leaving each at least one of its own."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    most = min(map(len, prompts)) - 1
    for position in range(most):
        if first[position] != last[position]:
            return position
    return most
