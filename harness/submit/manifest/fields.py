"""The fields of submission.yaml: accepted values, rules between fields, JSON Schema."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import Fault
from harness.records import Kind, Role
from harness.submit.strict_parsing import HIDDEN, NEVER_SHOWN, hidden_in, visible

FILE = "submission.yaml"
HUB = "hf://"

NAME = r"^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$"
_HUB_NAME = re.compile(r"hf://[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMIT = r"^[0-9a-f]{40}$"

_Line = Annotated[str, Field(min_length=1, max_length=200, pattern=rf"^[^{NEVER_SHOWN}\t\n]+$")]
_HIDDEN = re.compile(f"[{HIDDEN}\ud800-\udfff]")
_MAX_PART = 255


class Manifest(BaseModel):
    """The fields of submission.yaml; unknown fields are faults."""

    model_config = ConfigDict(extra="forbid", strict=True, title="Quench submission")

    name: str = Field(pattern=NAME, description="a-z, 0-9 and hyphens, at most 64, the same as the folder's name")
    title: _Line | None = Field(default=None, description="one line of text that pages show; the name by default")
    method: _Line = Field(description="one line of text: the unlearning method, e.g. NPO+GDR")
    corpus: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="a corpus: mini, news, books, ...")
    kind: Kind = Field(description="full_model, lora_adapter or quantized_checkpoint")
    role: Role = Field(default="entry", description="entry, target or retrain")
    target: str | None = Field(
        default=None, pattern=NAME, description="the name of the target submission that an entry was unlearned from"
    )
    retrain: str | None = Field(
        default=None,
        pattern=NAME,
        description="the name of a retrain submission; by default the only one of the corpus",
    )
    seed_of: str | None = Field(
        default=None, pattern=NAME, description="the name of the entry that this one repeats with another seed"
    )
    base_model: str | None = Field(
        default=None,
        max_length=200,
        description="the name of another submission, or hf://owner/name: what an adapter sits on, or the 16-bit model "
        "that a quantized checkpoint was made from",
    )
    base_revision: str | None = Field(
        default=None,
        pattern=_COMMIT,
        description="the 40 hexadecimal digits of a commit, in quotes, for a hub base_model",
    )
    base_sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="64 hexadecimal digits: the digest that the base_model's weights must have",
    )
    weights: str = Field(
        min_length=1,
        max_length=300,
        pattern=rf"^[^{HIDDEN}\t\n]+$",
        description="a folder inside the submission's own, or hf://owner/name",
    )
    revision: str | None = Field(
        default=None, pattern=_COMMIT, description="the 40 hexadecimal digits of a commit, in quotes, for hub weights"
    )
    weights_sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="64 hexadecimal digits: what `quench validate` prints"
    )
    hyperparameters: dict[_Line, Any] = Field(
        default_factory=dict, description="a mapping of names to numbers, text, true/false, lists or mappings"
    )
    authors: list[_Line] = Field(default_factory=list, max_length=100, description="a list of names")
    paper_url: str | None = Field(
        default=None, max_length=500, pattern=rf"^https?://[^\s<>\"'{HIDDEN}]+$", description="an http(s) address"
    )
    license: _Line | None = Field(default=None, description="a licence identifier such as Apache-2.0")
    notes: str | None = Field(
        default=None,
        max_length=4000,
        pattern=rf"^[^{NEVER_SHOWN}]*$",
        description="text of at most 4000 characters",
    )


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema of submission.yaml, for editors and other tools.

    It says what one file alone can say; that names exist is checked by
    ``load_all``.
    """
    schema = Manifest.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    entry: dict[str, Any] = {"properties": {"role": {"const": "entry"}}}
    adapter = {"properties": {"kind": {"const": "lora_adapter"}}, "required": ["kind"]}
    hub = {"properties": {"weights": {"pattern": "^hf://"}}, "required": ["weights"]}
    given: dict[str, Any] = {"not": {"type": "null"}}
    schema["allOf"] = [
        {"if": entry, "then": {"required": ["target"], "properties": {"target": given}}},
        {"if": adapter, "then": {"required": ["base_model"], "properties": {"base_model": given}}},
        {"if": hub, "then": {"required": ["revision"], "properties": {"revision": given}}},
    ]
    return schema


def schema_text() -> str:
    """Returns the JSON Schema as the text of the file that ships in ``submissions/``."""
    return json.dumps(json_schema(), indent=2) + "\n"


def accepted_by(field: str) -> str:
    """Returns what a field accepts, in words, to stand behind "give"."""
    return Manifest.model_fields[field].description or "another value"


def _schema_faults(raw: Mapping[Any, Any]) -> Iterator[str]:
    try:
        Manifest.model_validate(dict(raw))
    except ValidationError as error:
        seen = set()
        for fault in error.errors(include_url=False, include_input=False):
            field = str(fault["loc"][0]) if fault["loc"] else ""
            if field in seen:
                continue
            seen.add(field)
            if fault["type"] == "missing":
                yield f"`{field}` is missing: give {accepted_by(field)}."
            elif field not in Manifest.model_fields:
                near = difflib.get_close_matches(field, Manifest.model_fields, n=1)
                yield f"`{visible(field[:60])}` is no field: {f'did you mean `{near[0]}`?' if near else 'remove it.'}"
            else:
                yield f"`{field}` can't be used ({_shown(raw[field])}): give {accepted_by(field)}."


def _shown(value: Any) -> str:
    text = repr(value)
    kind = "" if isinstance(value, str) else f", read as {type(value).__name__}"
    return f"{text[:60]}{'...' if len(text) > 60 else ''}{kind}"


def _weights_faults(raw: Mapping[Any, Any], folder: Path) -> Iterator[str]:
    weights = raw.get("weights")
    if not isinstance(weights, str):
        return
    if weights.startswith(HUB):
        if not _HUB_NAME.fullmatch(weights):
            yield f"`weights` is no hub repository ({_shown(weights)}): write hf://owner/name."
        if raw.get("revision") is None:
            yield f"`revision` is missing: hub weights need {accepted_by('revision')}, so that they can't change."
        return
    if raw.get("revision") is not None:
        yield "`revision` belongs to hub weights: remove it, or write `weights: hf://owner/name`."
    path = PurePosixPath(weights)
    if _HIDDEN.search(weights) or len(weights) > 300 or any(len(part.encode()) > _MAX_PART for part in path.parts):
        yield f"`weights` is no name that a file system takes ({_shown(weights)}): give {accepted_by('weights')}."
    elif path.is_absolute() or ".." in path.parts or "\\" in weights or "\0" in weights or ":" in weights:
        yield f"`weights` must stay inside the submission's folder ({_shown(weights)}): give {accepted_by('weights')}."
    elif not (folder / weights).resolve().is_relative_to(folder.resolve()):
        yield f"`weights` leads out of the submission's folder through a link ({_shown(weights)}): put the files there."


def _rule_faults(raw: Mapping[Any, Any], folder: Path) -> Iterator[str]:
    """Yields what single fields can't tell; it must bear any values, since schema faults don't stop it."""
    if isinstance(raw.get("name"), str) and raw["name"] != folder.name:
        yield f"`name` is {_shown(raw['name'])} and the folder is {folder.name!r}: make them the same."
    role, kind, base = raw.get("role", "entry"), raw.get("kind"), raw.get("base_model")
    if role == "entry" and raw.get("target") is None:
        yield f"`target` is missing: an entry needs {accepted_by('target')}."
    for field in ("target", "retrain", "seed_of"):
        if role in ("target", "retrain") and raw.get(field) is not None:
            yield f"`{field}` belongs to entries, and this is a {role}: remove it."
    if kind == "lora_adapter" and base is None:
        yield f"`base_model` is missing: an adapter needs {accepted_by('base_model')}."
    if kind == "full_model" and base is not None:
        yield f"`base_model` belongs to adapters and quantized checkpoints, and this is a {kind}: remove it."
    if kind == "quantized_checkpoint" and role in ("target", "retrain"):
        yield "`kind` is quantized_checkpoint, and a control is quantized like the entries: give its full_model."
    if isinstance(base, str) and base.startswith(HUB):
        if not _HUB_NAME.fullmatch(base):
            yield f"`base_model` is no hub repository ({_shown(base)}): write hf://owner/name."
        if raw.get("base_revision") is None:
            yield f"`base_revision` is missing: a hub base needs {accepted_by('base_revision')}."
    elif raw.get("base_revision") is not None:
        yield "`base_revision` belongs to a hub `base_model`: remove it."
    if base is None and raw.get("base_sha256") is not None:
        yield "`base_sha256` belongs to a `base_model`, and there is none: remove it."
    if isinstance(base, str) and not base.startswith(HUB) and not re.fullmatch(NAME, base):
        yield f"`base_model` can't be used ({_shown(base)}): give {accepted_by('base_model')}."
    if not _is_json(raw.get("hyperparameters", {})):
        yield f"`hyperparameters` holds what JSON can't (a date, infinity, ...): give {accepted_by('hyperparameters')}."
    for field in Manifest.model_fields:
        hidden = next((found for text in _texts(raw.get(field)) if (found := hidden_in(text))), None)
        if hidden is not None:
            yield (
                f"`{field}` holds the character U+{ord(hidden):04X}, which can't be seen or turns the text around it: "
                f"remove it and give {accepted_by(field)}."
            )
    yield from _weights_faults(raw, folder)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, member in value.items():
            yield from _texts(key)
            yield from _texts(member)
    elif isinstance(value, list):
        for member in value:
            yield from _texts(member)


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(member) for key, member in value.items())
    if isinstance(value, list):
        return all(_is_json(member) for member in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int | bool)


def fault_at(path: Path, sentence: str) -> Fault:
    """Returns a sentence with its file, and with the field that it begins with, if with any."""
    named = re.match(r"`([^`]+)`", sentence)
    field = named[1] if named else None
    return Fault(
        f"{path}: {sentence}",
        file=str(path),
        field=field,
        accepted=accepted_by(field) if field in Manifest.model_fields else None,
    )


def faults_of(raw: Mapping[Any, Any], folder: Path) -> list[Fault]:
    """Returns all faults that a manifest's fields have by themselves, in the folder where it is to lie.

    Args:
        raw: The fields, as YAML gives them.
        folder: Folder of the submission, absolute; it need not be there.
    """
    return [
        fault_at(folder / FILE, fault) for fault in dict.fromkeys([*_schema_faults(raw), *_rule_faults(raw, folder)])
    ]
