"""Every error that Quench raises on purpose.

::

    QuenchError
    +-- InputError                what a user gave can't be used (exit code 2)
    |   +-- ManifestError         submission.yaml has faults
    |   +-- UnsafeSubmissionError weights or configs that are never loaded
    |   +-- UnknownNameError      no quantizer, task, ... of that name
    |   +-- CorpusError           data or a reference value is missing or wrong
    |   +-- PluginError           what an installed package adds can't be used
    |   +-- StoreError            the store can't be opened, read or trusted
    |       +-- StoreInUseError   another process has it open
    +-- QuantizationError         a backend failed, or its proof does
    +-- ScoringError              a model can't be scored

A message is one sentence: what is wrong, where, what is accepted, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Self


def first_line(error: Exception) -> str:
    """Returns the first line that an error of somebody else's code says, or its type's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: Exception | SystemExit) -> str:
    """Returns all that an error of somebody else's code says, its line breaks and runs of spaces as one space each."""
    return " ".join(str(error).split())


class QuenchError(Exception):
    """Base of all errors raised on purpose."""


class InputError(QuenchError):
    """Something a user gave cannot be used; the command line exits with 2."""


class Fault(str):
    """A sentence about one fault that also knows where it is and what is accepted there.

    Attributes:
        file: Path of the file or folder, None where it is about neither.
        field: Field of the manifest, None where it is about none.
        accepted: What the field accepts, in words.
    """

    file: str | None
    field: str | None
    accepted: str | None

    def __new__(
        cls, sentence: str, *, file: str | None = None, field: str | None = None, accepted: str | None = None
    ) -> Self:
        """Returns the sentence with what is known about it."""
        made = super().__new__(cls, sentence)
        made.file, made.field, made.accepted = file, field, accepted
        return made

    def as_json(self) -> dict[str, str | None]:
        """Returns the fault as a mapping: file, field, accepted, and the sentence, which says what to do."""
        return {"file": self.file, "field": self.field, "accepted": self.accepted, "sentence": str(self)}


class ManifestError(InputError):
    """A submission.yaml has faults; ``faults`` lists all of them."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker's errors cross processes.
        return type(self), (self.faults,)


class UnsafeSubmissionError(InputError):
    """Weights or configs that must not be loaded; ``faults`` lists all that are known, the message is the first."""

    def __init__(self, fault: str, *others: str) -> None:
        self.faults = (fault, *others)
        super().__init__(fault)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.faults


class UnknownNameError(InputError):
    """A name that nothing answers to, with the nearest ones that do."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}."
        super().__init__(f"There is no {kind} named {name!r}: {hint}")
        self.kind, self.name, self._known = kind, name, names

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.name, self._known)


class CorpusError(InputError):
    """Corpus data or a reference value is missing or wrong."""


class PluginError(InputError):
    """What an installed package adds can't be used; the message names it and its package."""


class StoreError(InputError):
    """The store can't be opened, read or trusted."""


class StoreInUseError(StoreError):
    """Another process has the store open; the message names it where the system tells."""


class QuantizationError(QuenchError):
    """A backend failed, or what it made does not hold its proof."""


class ScoringError(QuenchError):
    """A model can't be scored."""
