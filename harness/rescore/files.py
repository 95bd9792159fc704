"""Reading logs that other programs wrote: JSON only, within limits, every fault named by file and entry.

A log is a stranger's file. It may be huge, nested without end or hold values
of the wrong kind; each ends as one sentence. NaN and infinity are read,
because the programs that are read here write them for destroyed models; what
they mean is decided where the numbers are used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError

MAX_BYTES = 64 * 2**20
"""Largest log that is read; ten real ones were below 3 MB."""

MAX_ENTRIES = 2_000
"""Most entries of one list: MUSE has 100 documents per metric."""

MAX_PROMPT = 200_000
"""Most characters of a prompt or of a scored text."""

MAX_ANSWER = 20_000
"""Most characters of a response or a reference: ROUGE-L takes the product of both lengths."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in which log something stands, as a message names it.

    Attributes:
        file: The log as the user knows it.
        entry: Name of the part and position in it, empty for the whole file.
    """

    file: str
    entry: str = ""

    def __str__(self) -> str:
        return f"{self.file}, {self.entry}" if self.entry else self.file

    def at(self, position: int | str, part: str = "") -> Place:
        """Returns the place of one entry; positions count from 0."""
        return Place(self.file, f"{part} entry {position}".strip())

    def fault(self, what: str) -> InputError:
        """Returns the error that says what is wrong here."""
        return InputError(f"{self}: {what}.")


def read(path: Path, root: Path, shown: str) -> tuple[Any, str]:
    """Returns a log's JSON value and the SHA-256 of its file.

    Args:
        path: The file.
        root: Folder that the file must lie in once links are followed.
        shown: What messages call the file.

    Raises:
        InputError: It leads out of ``root``, is too large, can't be read or is no JSON.
    """
    place = Place(shown)
    if not path.resolve().is_relative_to(root.resolve()):
        raise place.fault("it is a link out of its folder; put the log itself there")
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise place.fault("it is no file, and a log in JSON is expected")
        if size > MAX_BYTES:
            raise place.fault(f"it has {size} bytes, and logs of at most {MAX_BYTES} are read; give one model's log")
        content = path.read_bytes()
        return json.loads(content.decode("utf-8")), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise place.fault(f"it can't be read ({error.strerror}); check that it is there") from error
    except (ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise place.fault(f"it is no JSON ({reason}); give the log as its program wrote it") from error


def as_list(value: Any, place: Place, of: str) -> list[Any]:
    """Returns a list of entries.

    Args:
        value: What the log holds.
        place: Where.
        of: What an entry is, for messages.

    Raises:
        InputError: It is none, is empty or has too many entries.
    """
    if not isinstance(value, list) or not value:
        raise place.fault(f"a list of {of} is expected, and this is {_kind(value)}")
    if len(value) > MAX_ENTRIES:
        raise place.fault(f"it has {len(value)} entries, and at most {MAX_ENTRIES} are read")
    return value


def as_object(value: Any, place: Place, of: str) -> Mapping[str, Any]:
    """Returns a JSON object.

    Raises:
        InputError: It is none.
    """
    if not isinstance(value, dict):
        raise place.fault(f"an object with {of} is expected, and this is {_kind(value)}")
    return value


def text(entry: Mapping[str, Any], key: str, place: Place, longest: int) -> str:
    """Returns one text of an entry.

    Raises:
        InputError: It is missing, no text, too long, or holds half a character.
    """
    value = entry.get(key)
    if not isinstance(value, str):
        raise place.fault(f"{key!r} must be a text, and is {_kind(value) if key in entry else 'missing'}")
    if len(value) > longest:
        raise place.fault(f"{key!r} has {len(value)} characters, and at most {longest} are read")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise place.fault(f"{key!r} holds half a character (a lone surrogate), which is no text")
    return value


def number(entry: Mapping[str, Any], key: str, place: Place) -> float | None:
    """Returns one number of an entry, NaN and infinity included; None where it is absent or null.

    Raises:
        InputError: It is no number.
    """
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise place.fault(f"{key!r} must be a number, and is {_kind(value)}")
    try:
        return float(value)
    except OverflowError:
        raise place.fault(f"{key!r} is a number of {len(str(value))} digits, which no score can be") from None


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list | dict) and not value:
        return "an empty list" if isinstance(value, list) else "an empty object"
    names = {bool: "true or false", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
