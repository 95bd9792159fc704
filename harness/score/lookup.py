"""Guessing what comes next from what has been written before: free, and often right for text that repeats itself."""

from __future__ import annotations

from collections.abc import Iterable

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
