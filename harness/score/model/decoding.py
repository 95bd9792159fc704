"""Continues several prompts together, each row at its own pace, with guesses checked in one pass.

Every pass reads a row's last token and a guess of what follows; where the
model's own choices are the guess, they are all taken at once. The first guess
is the document's own continuation (its *draft*), about which the pass also
tells how likely each token was; later ones are looked up in what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

from harness.score.model.batching import chunks_by_budget
from harness.score.model.kv_cache import Prefix, RowCache, plain_cache
from harness.score.model.log_probs import TokenLogProbs, right_padded, statistics
from harness.score.model.logits import LogitSource

_LENGTHS = (4, 3, 2)
"""Tokens that must be the same before a guess; longer matches are trusted first."""


class Lookup:
    """Proposes the continuation of the last place that ended as the text now ends.

    Args:
        tokens: What has been read so far; a likely continuation may stand before it.

    Source: prompt lookup decoding (Saxena, 2023).
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Adds tokens to the end."""
        for token in tokens:
            here = len(self._tokens)
            for length in _LENGTHS:
                if here >= length:
                    self._next[tuple(self._tokens[here - length :])] = here
            self._tokens.append(token)

    def propose(self, most: int) -> list[int]:
        """Returns at most ``most`` tokens that may come next, none where the ending is new."""
        for length in _LENGTHS:
            place = self._next.get(tuple(self._tokens[-length:]))
            if place is not None:
                return self._tokens[place : place + most]
        return []


StopCheck = Callable[[list[list[int]]], list[bool]]

_MIN_ROWS_TO_DROP = 4
_LONGEST_GUESS = 8
_WEIGHTLESS = {"cpu": 24, "cuda": 192}
"""Tokens of one pass up to which one more costs next to nothing: reading the weights is what takes the time.

Measured on two CPU cores (a 1536 x 576 layer: 0.65 ms for 2 to 8 rows, 0.75 for 16, 0.98 for 24, 1.8 for 64);
on a GPU estimated from the ratio of arithmetic to memory bandwidth.
"""


class RowBatch:
    """One batch on its way.

    Args:
        source: The causal language model.
        prefix: Keys and values that all prompts begin with; None for none.
        tails: The rest of each prompt, at least one token.
        drafts: What may well follow each prompt, possibly nothing.
        max_new_tokens: Most tokens to add to a prompt.
    """

    def __init__(
        self, source: LogitSource, prefix: Prefix | None, tails: Sequence[Sequence[int]],
        drafts: Sequence[Sequence[int]], max_new_tokens: int,
    ) -> None:  # fmt: skip
        self._source, self._prefix, self._tails, self._drafts = source, prefix, tails, drafts
        self._most = max_new_tokens
        self._shared = prefix[0][0].shape[2] if prefix else 0
        longest = self._shared + max(map(len, tails))
        capacity = longest + max(max_new_tokens + _LONGEST_GUESS, max(map(len, drafts)))
        self._cache = RowCache(len(tails), capacity)
        self._new: list[list[int]] = [[] for _ in tails]
        self._judged = [TokenLogProbs(logprobs=[], means=[], stds=[], correct=[]) for _ in tails]

    def run(
        self, prompt_tokens: int, end_ids: frozenset[int], is_stopped: StopCheck | None
    ) -> tuple[list[list[int]], list[TokenLogProbs]]:
        """Returns every row's new tokens and what the model thinks of its whole draft.

        Args:
            prompt_tokens: Prompt tokens that are run in one pass.
            end_ids: Tokens that end a row; they are not among the new ones.
            is_stopped: Given the new tokens of some rows, tells which of them
                need no more.
        """
        self._run_prompts(prompt_tokens)
        alive = list(range(len(self._tails)))
        last = [tail[-1] for tail in self._tails]
        place = [self._shared + len(tail) - 1 for tail in self._tails]
        guesses = [list(draft) for draft in self._drafts]
        known = [Lookup([*draft, *tail]) for draft, tail in zip(self._drafts, self._tails, strict=True)]
        for step in count():
            choices = self._choices(last, guesses, place, judge=step == 0)
            runs = [_accepted(guess, choice) for guess, choice in zip(guesses, choices, strict=True)]
            alive = written(self._new, alive, runs, self._most, end_ids, is_stopped)
            left = [index for index, row in enumerate(alive) if row >= 0]
            if not left:
                break
            for index in left:
                known[alive[index]].extend(runs[index])
                last[index] = runs[index][-1]
                place[index] += len(runs[index])
            if len(alive) - len(left) >= max(_MIN_ROWS_TO_DROP, len(alive) // 2):
                self._cache.keep(self._tensor(left))
                alive, last, place = ([values[index] for index in left] for values in (alive, last, place))
            room = min(_LONGEST_GUESS, _WEIGHTLESS.get(self._source.device.type, 0) // len(alive) - 1)
            guesses = [known[row].propose(room) if row >= 0 and room > 0 else [] for row in alive]
        return self._new, self._judged

    def _tensor(self, values: Any) -> Any:
        import torch

        return torch.tensor(values, dtype=torch.long, device=self._source.device)

    def _run_prompts(self, tokens: int) -> None:
        """Runs all prompts but for their last tokens, which the first guesses follow."""
        for part in chunks_by_budget([len(tail) for tail in self._tails], tokens):
            tails = [tail[:-1] for tail in self._tails[part]]
            cache = plain_cache(self._prefix, len(tails))
            # Padding stands right of everything that is read: a causal model needs no mask for it.
            if any(tails):
                self._source.fill(right_padded(tails).to(self._source.device), cache)
            self._cache.fill(part, cache)

    def _choices(
        self, last: Sequence[int], guesses: Sequence[Sequence[int]], place: Sequence[int], *, judge: bool
    ) -> list[list[int]]:
        """Returns the model's choice after each row's last token and after each token of its guess.

        Args:
            last: Last token of each row.
            guesses: What may follow it.
            place: Position of that last token.
            judge: Whether to keep what the model thinks of the guesses.
        """
        import torch

        sizes = [1 + len(guess) for guess in guesses]
        ids = right_padded([[token, *guess] for token, guess in zip(last, guesses, strict=True)])
        ids = ids.to(self._source.device)
        positions = self._tensor(place)[:, None] + torch.arange(ids.shape[1], device=ids.device)
        mask = self._cache.place(positions)
        read = self._source.read(ids, cache=self._cache.cache, attention_mask=mask, position_ids=positions)
        rows = self._tensor([row for row, size in enumerate(sizes) for _ in range(size)])
        places = self._tensor([place for size in sizes for place in range(size)])
        if not judge:
            found = self._source.logits(read[rows, places]).argmax(dim=-1)
            return [part.tolist() for part in found.cpu().split(sizes)]
        # After the last token of a guess there is nothing to judge, but a choice to read.
        targets = self._tensor([token for guess in guesses for token in (*guess, 0)])
        columns = [column.cpu().split(sizes) for column in statistics(self._source, read, rows, places, targets)]
        logprobs, means, stds, choices = ([part.tolist() for part in column] for column in columns)
        self._judged = [
            TokenLogProbs(
                logprobs=logprobs[row][:-1],
                means=means[row][:-1],
                stds=stds[row][:-1],
                correct=[choice == token for choice, token in zip(choices[row], guess, strict=False)],
            )
            for row, guess in enumerate(guesses)
        ]
        return choices


def _accepted(guess: Sequence[int], choices: Sequence[int]) -> list[int]:
    """Returns the guess up to its first token that is not the model's choice, and that choice."""
    right = 0
    while right < len(guess) and guess[right] == choices[right]:
        right += 1
    return [*guess[:right], choices[right]]


def written(
    new: list[list[int]], alive: Sequence[int], runs: Sequence[Sequence[int]], most: int, end_ids: frozenset[int],
    is_stopped: StopCheck | None,
) -> list[int]:  # fmt: skip
    """Adds a run of tokens to each row, one token of all at a time.

    Args:
        new: Tokens of every row so far, added to in place.
        alive: Which row each run belongs to; -1 for one that has ended.
        runs: The tokens to add.
        most: Most tokens of a row.
        end_ids: Tokens that end a row and are not added.
        is_stopped: Given the tokens of some rows, tells which of them have ended.

    Returns:
        ``alive`` with -1 for rows that have ended now.
    """
    going = {place: row for place, row in enumerate(alive) if row >= 0}
    for step in range(max(map(len, runs))):
        reached = [place for place in going if step < len(runs[place])]
        for place in reached:
            if runs[place][step] in end_ids:
                del going[place]
        reached = [place for place in reached if place in going]
        for place in reached:
            new[going[place]].append(runs[place][step])
        stopped = is_stopped([new[going[place]] for place in reached]) if is_stopped and reached else ()
        for place, has_stopped in zip(reached, stopped or [False] * len(reached), strict=True):
            if has_stopped or len(new[going[place]]) == most:
                del going[place]
        if not going:
            break
    return [going.get(place, -1) for place in range(len(alive))]
