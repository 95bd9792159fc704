"""Reads submission.yaml into a ``Submission``; reports all problems at once."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import InputError, ManifestError
from harness.records import Submission
from harness.submit.manifest.fields import (
    FILE,
    HUB,
    NAME,
    Manifest,
    accepted_by,
    fault_at,
    faults_of,
    json_schema,
    schema_text,
)
from harness.submit.strict_parsing import read_yaml

__all__ = [
    "FILE", "HUB", "NAME", "Manifest", "beside", "faults_of", "json_schema", "load", "load_all", "load_beside",
    "load_usable", "local_weights", "schema_text", "stated",
]  # fmt: skip

_MAX_BYTES = 64 * 1024


def _raw(folder: Path) -> dict[Any, Any]:
    """Returns the fields of a folder's submission.yaml, unchecked.

    Raises:
        ManifestError: There is none, or no plain mapping in it.
    """
    path = folder / FILE
    try:
        if not path.is_file() or path.is_symlink():
            raise ManifestError(
                [fault_at(path, "there is no such file: every submission needs one (docs/submitting.md shows it).")]
            )
        raw = read_yaml(path, limit=_MAX_BYTES)
    except OSError as error:
        raise ManifestError([fault_at(path, f"it can't be read ({error.strerror}): give rights to it.")]) from error
    except ManifestError:
        raise
    except InputError as refused:
        raise ManifestError([fault_at(path, f"{refused}.")]) from refused
    if not isinstance(raw, dict):
        raise ManifestError(
            [fault_at(path, f"it must be a mapping of fields such as `name: {folder.name}`, and is something else.")]
        )
    return raw


def _read(folder: Path) -> tuple[Submission | None, list[str]]:
    """Returns the submission, or the faults that prevent one."""
    try:
        raw = _raw(folder)
    except ManifestError as refused:
        return None, list(refused.faults)
    if faults := faults_of(raw, folder):
        return None, list(faults)
    manifest = Manifest.model_validate(raw)
    local = not manifest.weights.startswith(HUB)
    fields = manifest.model_dump() | {
        "title": manifest.title or manifest.name,
        "authors": tuple(manifest.authors),
        "weights": str((folder / manifest.weights).resolve()) if local else manifest.weights,
        "folder": str(folder.resolve()),
    }
    return Submission(**fields), []


def load(folder: Path) -> Submission:
    """Returns the submission of one folder; ``retrain`` stays None where the manifest names none.

    Raises:
        ManifestError: With all faults of its submission.yaml.
    """
    submission, faults = _read(folder.absolute())
    if submission is None:
        raise ManifestError(faults)
    return submission


def _cross_faults(submission: Submission, found: Mapping[str, Submission], broken: set[str]) -> Iterator[str]:
    """Yields the names that lead nowhere, or to the wrong kind of submission."""
    wanted = [("target", submission.target), ("retrain", submission.retrain)]
    for role, name in wanted:
        if name is None or name in broken:
            continue
        other = found.get(name)
        if other is None:
            choices = [each.name for each in found.values() if each.role == role and each.corpus == submission.corpus]
            yield f"`{role}` names {name!r}, and there is no such submission: {_choices(choices, role, submission)}"
        elif other.role != role:
            yield f"`{role}` names {name!r}, whose role is {other.role}: name a submission with `role: {role}`."
        elif other.corpus != submission.corpus:
            yield f"`{role}` names {name!r} of corpus {other.corpus}, and this is {submission.corpus}: name one of it."
    yield from _seed_faults(submission, found, broken)
    base = submission.base_model
    if base is None or base.startswith(HUB) or base in broken:
        return
    if base not in found:
        near = difflib.get_close_matches(base, found, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give {accepted_by('base_model')}."
        yield f"`base_model` names {base!r}, and there is no such submission: {hint}"
    elif found[base].kind != "full_model":
        sits = "an adapter sits on" if submission.kind == "lora_adapter" else "a quantized checkpoint is made from"
        yield f"`base_model` names {base!r}, a {found[base].kind}: {sits} a full_model."


def _seed_faults(submission: Submission, found: Mapping[str, Submission], broken: set[str]) -> Iterator[str]:
    name = submission.seed_of
    if name is None or name in broken:
        return
    first = found.get(name)
    if first is None:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give {accepted_by('seed_of')}."
        yield f"`seed_of` names {name!r}, and there is no such submission: {hint}"
    elif first.name == submission.name or first.seed_of is not None:
        whose = "itself" if first.name == submission.name else f"{name!r}, itself a seed of {first.seed_of!r}"
        yield f"`seed_of` names {whose}: name the first seed, which has no `seed_of`."
    else:
        for field in ("role", "corpus", "target", "method", "kind"):
            mine, other = getattr(submission, field), getattr(first, field)
            if mine != other:
                yield f"`seed_of` names {name!r}, whose {field} is {other!r} and not {mine!r}: seeds share it."


def _choices(choices: list[str], role: str, submission: Submission) -> str:
    if choices:
        return f"{role}s of {submission.corpus} are {', '.join(sorted(choices))}."
    return f"add a submission with `role: {role}` and `corpus: {submission.corpus}`."


def _with_retrain(
    submission: Submission, found: Mapping[str, Submission], broken: set[str]
) -> tuple[Submission, str | None]:
    """Returns the submission with its default retrain control, or the fault of having several to choose from.

    Where the only control has faults, to go on without one would be another comparison.
    """
    if submission.role != "entry" or submission.retrain is not None:
        return submission, None
    names = sorted(each.name for each in found.values() if each.role == "retrain" and each.corpus == submission.corpus)
    if len(names) > 1:
        return submission, f"`retrain` is missing, and {submission.corpus} has {len(names)}: name {' or '.join(names)}."
    for name in sorted(broken) if not names else ():
        raw = stated(Path(submission.folder).parent / name)
        if raw.get("role") == "retrain" and raw.get("corpus") == submission.corpus:
            return dataclasses.replace(submission, retrain=name), None
    return dataclasses.replace(submission, retrain=names[0] if names else None), None


def load_all(directory: Path) -> dict[str, Submission]:
    """Returns all submissions of a directory by name, sorted, each with its controls checked.

    An entry that names no retrain control gets the only one of its corpus;
    None where its corpus has none.

    Raises:
        ManifestError: With all faults of all manifests.
    """
    complete, faults = _all_of(directory)
    if faults:
        raise ManifestError(sentence for sentences in faults.values() for sentence in sentences)
    return complete


def load_usable(directory: Path) -> tuple[dict[str, Submission], dict[str, list[str]]]:
    """Returns what ``load_all`` does of the submissions without faults, and by name the faults of the others.

    What names a submission with faults has one itself.

    Raises:
        ManifestError: There is no such directory.
    """
    complete, faults = _all_of(directory)
    while lost := {
        name: sentences
        for name, submission in complete.items()
        if name not in faults and (sentences := _named_faulty(submission, faults))
    }:
        faults |= lost
    return {name: submission for name, submission in complete.items() if name not in faults}, faults


def _all_of(directory: Path) -> tuple[dict[str, Submission], dict[str, list[str]]]:
    """Returns all submissions of a directory that can be read, completed, and the faults of each folder with any."""
    if not directory.is_dir():
        raise ManifestError(
            [f"{directory}: there is no such folder: give one that holds a folder for each submission."]
        )
    found, unread = _read_all(directory)
    complete, faults = {}, dict(unread)
    for name, submission in found.items():
        complete[name], problems = _completed(submission, found, set(unread))
        if problems:
            faults[name] = problems
    return complete, faults


def _read_all(directory: Path) -> tuple[dict[str, Submission], dict[str, list[str]]]:
    """Returns the submissions of a directory that can be read, and by name of the folder the faults of the others."""
    folders = sorted(
        path for path in directory.absolute().iterdir()
        if path.is_dir() and path.name[0] not in "._" and not _is_being_made(path)
    )  # fmt: skip
    found: dict[str, Submission] = {}
    faults: dict[str, list[str]] = {}
    for folder in folders:
        submission, problems = _read(folder)
        if submission is None:
            faults[folder.name] = problems
        else:
            found[submission.name] = submission
    return found, faults


def _is_being_made(folder: Path) -> bool:
    """Returns whether a folder holds hidden files only: checkpoints of an entry whose training goes on or was cut."""
    try:
        inside = [path.name for path in folder.iterdir()]
    except OSError:
        return False
    return bool(inside) and all(name.startswith(".") for name in inside)


def beside(directory: Path) -> tuple[dict[str, Submission], set[str]]:
    """Returns the submissions of a directory whose manifests have no faults by name, and the names of the others."""
    found, faults = _read_all(directory)
    return found, set(faults)


def _completed(
    submission: Submission, found: Mapping[str, Submission], broken: set[str]
) -> tuple[Submission, list[str]]:
    """Returns a submission with its retrain control, and its faults beside the others."""
    complete, ambiguous = _with_retrain(submission, found, broken)
    problems = [*_cross_faults(submission, found, broken), *([ambiguous] if ambiguous else [])]
    return complete, [fault_at(Path(submission.folder) / FILE, problem) for problem in problems]


def load_beside(
    folder: Path, found: Mapping[str, Submission], broken: set[str]
) -> tuple[Submission, dict[str, Submission], list[str]]:
    """Returns one folder's submission, all together with it, and its own faults; those of others are not told.

    Naming a neighbour that has faults is a fault.

    Args:
        folder: Folder of the submission.
        found: The submissions beside it, as ``beside`` returns them.
        broken: Names of the folders there whose manifests have faults.

    Raises:
        ManifestError: With all faults of the folder's own submission.yaml.
    """
    submission = load(folder)
    together = {**found, submission.name: submission}
    submission, faults = _completed(submission, together, broken)
    return submission, {**together, submission.name: submission}, [*faults, *_named_faulty(submission, broken)]


def _named_faulty(submission: Submission, faulty: Collection[str]) -> list[str]:
    """Returns a fault for each submission with faults that this one names."""
    path = Path(submission.folder) / FILE
    return [
        fault_at(path, f"`{field}` names {name!r}, which has faults of its own: mend that one first.")
        for field in ("target", "retrain", "seed_of", "base_model")
        if (name := getattr(submission, field)) in faulty
    ]


def stated(folder: Path) -> dict[Any, Any]:
    """Returns the fields as a folder's submission.yaml states them, unchecked; none where it can't be read."""
    try:
        return _raw(folder.absolute())
    except ManifestError:
        return {}


def local_weights(folder: Path) -> tuple[Path, str] | None:
    """Returns where a submission's weights lie and of what kind they are, though other fields have faults.

    None where these fields have faults too, or the weights are on the hub.
    """
    folder = folder.absolute()
    raw = stated(folder)
    if (
        not raw
        or {fault.field for fault in faults_of(raw, folder)} & {"weights", "kind"}
        or raw["weights"].startswith(HUB)
    ):
        return None
    return (folder / raw["weights"]).resolve(), raw["kind"]
