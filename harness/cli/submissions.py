"""The commands around a submission: init, validate, comment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.options import (
    PUBLISH,
    SUBMIT,
    JsonOption,
    SubmissionsOption,
    print_rows,
    stderr,
    submission_folders,
    submissions_dir,
)
from harness.errors import Fault, InputError

app = typer.Typer()

# What a person is asked for, with whether an empty answer will do.
_QUESTIONS = {
    "weights": False, "kind": False, "corpus": False, "method": False, "target": False, "base_model": False,
    "base_revision": False, "revision": False, "title": True, "license": True,
}  # fmt: skip


def _on_terminal() -> bool:
    return sys.stdin.isatty()


@app.command(
    rich_help_panel=SUBMIT,
    epilog="Examples: `quench init submissions/my-entry` · "
    "`quench init submissions/my-entry --method NPO --corpus mini --target mini-target-4bit --set lr=1e-5` · "
    "`quench init submissions/my-hub-entry --weights hf://owner/name --revision "
    "0123456789abcdef0123456789abcdef01234567 --kind full_model --method GA --corpus news --target my-target`",
)
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the submission; its name becomes the submission's.")],
    weights: Annotated[
        str | None, typer.Option("--weights", help="A folder inside FOLDER, or hf://owner/name. [default: found]")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="The unlearning method, e.g. NPO+GDR.")] = None,
    corpus: Annotated[str | None, typer.Option("--corpus", help="Its corpus, e.g. mini, news or books.")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="full_model, lora_adapter or quantized_checkpoint. [default: found]")
    ] = None,
    role: Annotated[str, typer.Option("--role", help="entry, target or retrain.")] = "entry",
    target: Annotated[str | None, typer.Option("--target", help="The target that it was unlearned from.")] = None,
    retrain: Annotated[str | None, typer.Option("--retrain", help="The retrain control, if there are several.")] = None,
    seed_of: Annotated[
        str | None, typer.Option("--seed-of", help="The entry that it repeats with another seed.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="What an adapter sits on: a submission, or hf://owner/name.")
    ] = None,
    base_revision: Annotated[str | None, typer.Option("--base-revision", help="Commit of a hub base model.")] = None,
    base_sha256: Annotated[
        str | None, typer.Option("--base-sha256", help="Digest that the base model's weights must have.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Commit of hub weights.")] = None,
    weights_sha256: Annotated[
        str | None,
        typer.Option("--weights-sha256", help="Digest of the weights, as `quench validate --json` tells it."),
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="What pages show.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of a hyperparameter; may be repeated.")
    ] = None,
    authors: Annotated[list[str] | None, typer.Option("--author", help="An author; may be repeated.")] = None,
    paper_url: Annotated[str | None, typer.Option("--paper-url", help="Address of the paper.")] = None,
    license_name: Annotated[str | None, typer.Option("--license", help="Licence, e.g. Apache-2.0.")] = None,
    notes: Annotated[str | None, typer.Option("--notes", help="Free text.")] = None,
) -> None:
    """Write a commented submission.yaml: from options, from the weights' configs, and on a terminal from answers."""
    from harness.submit.manifest import init as manifest_init

    given: dict[str, Any] = {
        "weights": weights, "method": method, "corpus": corpus, "kind": kind, "role": role, "target": target,
        "retrain": retrain, "seed_of": seed_of, "base_model": base_model, "base_revision": base_revision,
        "base_sha256": base_sha256, "revision": revision, "weights_sha256": weights_sha256, "title": title,
        "hyperparameters": dict(map(_setting, settings or ())), "authors": authors, "paper_url": paper_url,
        "license": license_name, "notes": notes,
    }  # fmt: skip
    fields = manifest_init.gathered(folder, given)
    if _on_terminal():
        for field, may_be_empty in _QUESTIONS.items():
            if given[field] is None and _wanted(field, fields):
                answer = _asked(field, str(fields.get(field, "")), may_be_empty, manifest_init.fault_of)
                given[field] = answer or None
                fields = manifest_init.gathered(folder, given)
    path = manifest_init.write(folder, fields)
    there = fields["weights"].startswith("hf://") or (path.parent / fields["weights"]).is_dir()
    first = "" if there else f"put the weights into {path.parent / fields['weights']}, then "
    stderr.print(f"Wrote {path}. Next: {first}quench validate {folder}", highlight=False, soft_wrap=True, markup=False)


def _wanted(field: str, fields: dict[str, Any]) -> bool:
    """Returns whether a field belongs to a submission such as this."""
    if field == "base_revision":
        return str(fields.get("base_model", "")).startswith("hf://")
    if field == "revision":
        return bool(fields["weights"].startswith("hf://"))
    if field == "base_model":
        return fields.get("kind") == "lora_adapter"
    return field != "target" or fields["role"] == "entry"


def _asked(field: str, default: str, may_be_empty: bool, fault_of: Callable[[str, Any], str | None]) -> str:
    """Returns an answer that the field accepts; asks again until there is one."""
    from harness.submit.manifest.load import Manifest

    told = Manifest.model_fields[field].description
    while True:
        answer = str(typer.prompt(f"{field} ({told})", default=default if default or may_be_empty else None, err=True))
        wrong = fault_of(field, answer) if answer or not may_be_empty else None
        if wrong is None:
            return answer
        stderr.print(wrong, highlight=False, markup=False)


def _setting(text: str) -> tuple[str, Any]:
    """Returns a hyperparameter's name and value, which is text where it is no JSON."""
    from harness.submit.strict_parsing import parse_json

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InputError(f"--set {text!r} is no setting: write --set key=value, e.g. --set learning_rate=1e-5.")
    try:
        return name, parse_json(value)
    except InputError:
        return name, value


@app.command(
    rich_help_panel=SUBMIT,
    epilog="Examples: `quench validate` · `quench validate submissions/my-entry --json` · `quench validate --schema`",
)
def validate(
    paths: Annotated[list[Path] | None, typer.Argument(help="Submission folders. [default: all]")] = None,
    submissions: SubmissionsOption = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of submission.yaml instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check submissions the way the board's CI does: manifest, weights, configs. Nothing is loaded."""
    if schema:
        from harness.submit.manifest import load as manifest

        print(manifest.schema_text(), end="")
        return
    from harness.submit import validate as validation

    folders = paths or submission_folders(submissions_dir(submissions))
    rows = [_row(folder, *told) for folder, told in zip(folders, validation.reports_of(folders), strict=True)]
    columns = ("submission", "valid", "faults", "notes", "weights_sha256")
    print_rows(rows, "validate", as_json, title="Submissions", columns=columns)
    if not all(row["valid"] for row in rows):
        raise typer.Exit(2)


@app.command(
    rich_help_panel=PUBLISH,
    epilog="Example: `quench comment artifact.zip --link https://example.org/runs/1`",
)
def comment(
    artifact: Annotated[Path, typer.Argument(help="The zip archive that the workflow `validate` has uploaded.")],
    link: Annotated[str | None, typer.Option("--link", help="Address of that run, for its log.")] = None,
) -> None:
    """Write a Markdown comment for a pull request: its faults, or its new entries and their tiers."""
    from harness.publish import pull_request

    print(pull_request.comment(artifact, link), end="")


def _row(folder: Path, found: Sequence[Fault], notes: Sequence[str]) -> dict[str, Any]:
    """Returns one row: faults and notes as sentences, each fault again with its file, field and what is accepted."""
    from harness.submit.manifest import load as manifest
    from harness.submit.weight_files import weights_digest

    return {
        "submission": folder.absolute().name,
        "valid": not found,
        "faults": [str(fault) for fault in found],
        "notes": list(notes),
        "details": [fault.as_json() for fault in found],
        "weights_sha256": None if found else weights_digest(manifest.load(folder)),
    }
