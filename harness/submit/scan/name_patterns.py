"""Regular expressions of strangers, as peft takes them for names of layers, run so that none can hang.

Python's own engine can't be stopped. The library ``regex`` reads the same syntax and stops after a time; where the
two would read a pattern in different ways, it is refused.
"""

from __future__ import annotations

import functools
import re
import time
from typing import Any

LONGEST = 2000
"""Characters of a pattern: what trainers write for a model with a vision tower has 500."""

SECONDS = 10.0
"""Time for all matches of one adapter; honest ones take a hundredth of it."""

MOST = 256
"""Regular expressions of one field, names of layers not counted; each takes a thousandth of a second to compile."""

ENDING = r"(.*\.)?({})$"
"""Where peft puts a key of ``rank_pattern`` or ``alpha_pattern``."""

PLACE = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
"""Where peft puts a ``layers_pattern``."""

# Runs in linear time in any engine, also inside ENDING and PLACE; some configs name every layer.
_PLAIN = re.compile(rf"[\w.]{{0,{LONGEST}}}")

# Fuzzy counts, named characters, character classes and set operations are read in two ways.
_TWO_READINGS = re.compile(r"\{(?!\d+(?:,\d*)?\}|,\d+\})|\\[Np]|\[\[|\[:|--|&&|\|\||~~|\(\?[aiLmsux]")


@functools.lru_cache(maxsize=4096)
def compiled(pattern: str) -> Any:
    """Returns a pattern, compiled.

    Raises:
        ValueError: It is too long, no regular expression, or read by the two
            engines in different ways.
    """
    import regex

    if len(pattern) > LONGEST or _TWO_READINGS.search(pattern):
        raise ValueError("no pattern that can be run safely")
    try:
        re.compile(pattern)
        return regex.compile(pattern, regex.V0)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError("no regular expression") from error


def is_plain(pattern: str) -> bool:
    """Returns whether a pattern is a name of a layer or of its last parts, which any engine runs in no time."""
    return _PLAIN.fullmatch(pattern) is not None


@functools.lru_cache(maxsize=65536)
def _plain(pattern: str, frame: str) -> re.Pattern[str] | None:
    return re.compile(frame.format(pattern)) if is_plain(pattern) else None


class Matcher:
    """Runs patterns until ``SECONDS`` are over, all calls together."""

    def __init__(self) -> None:
        self._end = time.monotonic() + SECONDS

    def match(self, pattern: str, name: str, *, frame: str = "{}", full: bool = False) -> Any:
        """Returns what ``re.match`` or ``re.fullmatch`` would return of a pattern in its frame.

        Raises:
            TimeoutError: The time is over.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if plain := _plain(pattern, frame):
            return plain.fullmatch(name) if full else plain.match(name)
        run = compiled(frame.format(pattern))
        return run.fullmatch(name, timeout=left) if full else run.match(name, timeout=left)
