"""Checks a stranger's JSON mapping against a strict pydantic model and says what is wrong in one sentence a field."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from harness.errors import Fault, UnsafeSubmissionError
from harness.submit.strict_parsing import visible

Wrong = tuple[str, str | None, str | None]
"""What is wrong with a config, in words without the file's name; the field; what it accepts."""

MAX_TOLD = 20
"""Faults of one kind that are told: more would be one mistake made often."""


def one_of(*values: Any) -> Any:
    """Returns the type of a field that accepts these values."""
    return Literal[values]


def accepts(description: str, **limits: Any) -> Any:
    """Returns a field with a default of None, and with what it accepts in words."""
    return Field(default=None, description=description, **limits)


def faults_of(model: type[BaseModel], values: Mapping[str, Any], place: str = "") -> Iterator[Wrong]:
    """Yields one fault for each field of a model that a mapping lacks or has another value for.

    Args:
        model: Each field has a description: what it accepts.
        values: The mapping.
        place: What stands before the field's name in a sentence.
    """
    try:
        model.model_validate(dict(values))
    except ValidationError as error:
        fields = dict.fromkeys(str(fault["loc"][0]) for fault in error.errors(include_url=False))
        for field in fields:
            accepted = model.model_fields[field].description
            given = f"is {shown(values[field])}, and" if field in values else "is missing:"
            yield f"{place}`{field}` {given} accepted is {accepted}", field, accepted


def shown(value: Any) -> str:
    """Returns a stranger's value for a sentence."""
    return visible(repr(value)[:60])


def listed(names: Collection[str]) -> str:
    """Returns a stranger's names for a sentence, at most ``MAX_TOLD`` of them."""
    told = [visible(name[:80]) for name in sorted(names)[:MAX_TOLD]]
    return ", ".join([*told, *([f"and {len(names) - MAX_TOLD} more"] if len(names) > MAX_TOLD else [])])


def is_empty(value: Any) -> bool:
    """Returns whether a value switches nothing on."""
    return value is None or value in (False, "", {}, [])


def refuse(path: Path, what: str) -> UnsafeSubmissionError:
    """Returns the refusal of a file or folder: its path and what is wrong, in one sentence."""
    return UnsafeSubmissionError(Fault(f"{path}: {what}.", file=str(path)))
