"""The page on how to enter: the fields of the manifest, read from its JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.submit.manifest.fields import json_schema
from harness.submit.manifest.init import SCHEMA_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a manifest.

    Attributes:
        needed: ``always``, a condition in words, or empty.
    """

    name: str
    says: str
    needed: str


def context() -> dict[str, Any]:
    """Returns the template's variables."""
    return {"fields": fields(json_schema()), "schema_file": SCHEMA_FILE}


def fields(schema: Mapping[str, Any]) -> list[Field]:
    """Returns the fields of a manifest's JSON Schema, in its order."""
    needed = dict.fromkeys(schema.get("required", ()), "always")
    for rule in schema.get("allOf", ()):
        needed |= {name: needed.get(name, _condition(rule["if"])) for name in rule["then"].get("required", ())}
    return [
        Field(name=name, says=found.get("description", ""), needed=needed.get(name, ""))
        for name, found in schema["properties"].items()
    ]


def _condition(when: Mapping[str, Any]) -> str:
    """Returns a schema's condition in words: ``role: entry``, ``weights: hf://…``."""
    parts = []
    for name, found in when.get("properties", {}).items():
        pattern = str(found.get("pattern", "")).removeprefix("^")
        parts.append(f"{name}: {found.get('const', f'{pattern}…')}")
    return " and ".join(parts)
