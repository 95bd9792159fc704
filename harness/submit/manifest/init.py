"""Writes a first submission.yaml: fills in what the weights show, explains every field in a comment."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from harness.errors import Fault, InputError, ManifestError
from harness.records import Submission
from harness.submit.checkpoint import hub
from harness.submit.manifest import load as manifest
from harness.submit.scan.model_config import read_config
from harness.submit.weight_files import names_hub

SCHEMA_FILE = "submission.schema.json"
"""Lies beside the submission folders, where the first line of each submission.yaml points an editor."""

_WIDTH = 110
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LORA = {"r": "lora_rank", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
_FORMS = {"use_rslora": "rslora", "use_dora": "dora"}


def _weights_folder(folder: Path, weights: str | None) -> str:
    """Returns the folder of the weights, relative: the one given, or the only one that holds a model's config."""
    if weights is not None:
        return weights
    configs = [*folder.glob("*/adapter_config.json"), *folder.glob("*/config.json")]
    configs += [path for path in (folder / "adapter_config.json", folder / "config.json") if path.is_file()]
    places = sorted({path.parent.relative_to(folder).as_posix() for path in configs})
    return places[0] if len(places) == 1 else "weights"


def _base(config: Mapping[str, Any], beside: Mapping[str, Submission], *places: Path) -> dict[str, Any]:
    """Returns the base model that an adapter's config names, where a manifest can name it too.

    A folder of whoever trained it is none: the field stays empty, and is asked for.
    """
    told = config.get("base_model_name_or_path")
    if not isinstance(told, str):
        return {}
    name = Path(told).name if Path(told).name in beside else told
    if name in beside and beside[name].kind == "full_model":
        return {"base_model": name}
    if names_hub(told, *places):
        revision = config.get("revision")
        known = isinstance(revision, str) and _COMMIT.fullmatch(revision)
        return {"base_model": f"{manifest.HUB}{told}"} | ({"base_revision": revision} if known else {})
    return {}


def _from_weights(weights: Path, beside: Mapping[str, Submission]) -> dict[str, Any]:
    """Returns the fields that a folder of weights tells by itself."""
    adapter, model = weights / "adapter_config.json", weights / "config.json"
    if adapter.is_file():
        config = read_config(adapter)
        settings = {name: config[key] for key, name in _LORA.items() if config.get(key) is not None}
        settings |= {name: True for key, name in _FORMS.items() if config.get(key) is True}
        return {"kind": "lora_adapter", "hyperparameters": settings, **_base(config, beside, weights, weights.parent)}
    if any(weights.glob("*.gguf")):
        return {"kind": "quantized_checkpoint"}
    if model.is_file():
        quantized = "quantization_config" in read_config(model)
        return {"kind": "quantized_checkpoint" if quantized else "full_model"}
    return {}


def gathered(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a manifest's fields: those given, and what the weights' configs and the submissions beside it tell.

    Args:
        folder: Folder of the submission; it need not be there.
        given: Fields by name; None stands for not given.

    Raises:
        InputError: There is a submission.yaml already.
        UnsafeSubmissionError: A config that can't be read strictly, or that
            names code to run.
    """
    folder = folder.absolute()
    path = folder / manifest.FILE
    if path.exists() or path.is_symlink():
        raise InputError(
            f"{path} is there already and is not overwritten: edit it, or name another folder; "
            f"`quench validate {folder}` checks it."
        )
    chosen = {key: value for key, value in given.items() if value not in (None, [], {})}
    beside = manifest.beside(folder.parent)[0] if folder.parent.is_dir() else {}
    fields: dict[str, Any] = {"name": folder.name, "weights": _weights_folder(folder, chosen.get("weights"))}
    if not fields["weights"].startswith(manifest.HUB):
        fields |= _from_weights(folder / fields["weights"], beside)
    fields["hyperparameters"] = fields.get("hyperparameters", {}) | chosen.pop("hyperparameters", {})
    fields |= {"role": "entry"} | chosen
    if fields["role"] == "entry" and "target" not in fields:
        fields |= _target(fields, beside)
    if "corpus" not in fields and fields.get("target") in beside:
        fields["corpus"] = beside[fields["target"]].corpus
    return {key: value for key, value in fields.items() if value != {}}


def _target(fields: Mapping[str, Any], beside: Mapping[str, Submission]) -> dict[str, str]:
    """Returns the target that an entry must have been unlearned from: its base, or the corpus's only one."""
    base = beside.get(fields.get("base_model", ""))
    if base is not None and base.role == "target":
        return {"target": base.name}
    corpus = fields.get("corpus")
    targets = [each.name for each in beside.values() if each.role == "target" and each.corpus == corpus]
    return {"target": targets[0]} if len(targets) == 1 else {}


def fault_of(field: str, value: Any) -> str | None:
    """Returns what is wrong with one field's value alone, as a sentence; None where nothing is."""
    place = Path("/submission")
    # That a field belongs to others is for the whole manifest to say.
    for fault in manifest.faults_of({field: value}, place):
        if fault.field == field and " belongs to " not in fault:
            return fault.removeprefix(f"{place / manifest.FILE}: ")
    return None


def text(fields: Mapping[str, Any], *, schema: str = f"../{SCHEMA_FILE}") -> str:
    """Returns a commented submission.yaml: each field under what it accepts, those not given as comments.

    Args:
        fields: Values by the fields' names.
        schema: Where an editor finds the JSON Schema, relative to the file.
    """
    lines = [f"# yaml-language-server: $schema={schema}"]
    for name, about in manifest.Manifest.model_fields.items():
        needed = "needed" if about.is_required() else "may be left out"
        lines += ["", *(f"# {line}" for line in textwrap.wrap(f"{about.description} ({needed})", _WIDTH))]
        if name in fields:
            lines.append(yaml.safe_dump({name: fields[name]}, sort_keys=False, allow_unicode=True, width=_WIDTH)[:-1])
        else:
            lines.append(f"# {name}:")
    return "\n".join(lines) + "\n"


def write(folder: Path, fields: Mapping[str, Any]) -> Path:
    """Writes a folder's submission.yaml, and the JSON Schema beside the folder where there is none; never overwrites.

    Args:
        folder: Folder of the submission, made where it is not there.
        fields: Values by the fields' names, as ``gathered`` returns them.

    Returns:
        Path of the submission.yaml.

    Raises:
        ManifestError: With all faults of the fields, each with its option.
        InputError: The file is there already, or the folder can't be written.
    """
    folder = folder.absolute()
    if faults := manifest.faults_of(fields, folder):
        raise ManifestError(_with_option(fault) for fault in hub.with_commits(faults, fields))
    path = folder / manifest.FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text(fields))
        schema = folder.parent / SCHEMA_FILE
        if not schema.exists():
            schema.write_text(manifest.schema_text(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror}): name a folder that you may write to.") from error
    return path


def _with_option(fault: str) -> str:
    """Returns a fault that also names the option of `quench init` that mends it."""
    if not isinstance(fault, Fault) or fault.field not in manifest.Manifest.model_fields or fault.field == "name":
        return fault
    option = {"hyperparameters": "set", "authors": "author"}.get(fault.field, fault.field.replace("_", "-"))
    return Fault(
        f"{fault.removesuffix('.')} (option --{option}).", file=fault.file, field=fault.field, accepted=fault.accepted
    )
