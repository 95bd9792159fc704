"""All of `quench validate`: faults of manifest, weights and configs of each folder; loads no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import paths
from harness.errors import Fault, InputError, ManifestError, UnsafeSubmissionError
from harness.records import Submission
from harness.submit.checkpoint import hub, prepare
from harness.submit.manifest import load as manifest
from harness.submit.scan import folder as folder_scan
from harness.submit.scan import target_shape


def faults_of(folders: Sequence[Path]) -> list[list[Fault]]:
    """Returns the faults of ``reports_of`` alone."""
    return [faults for faults, _ in reports_of(folders)]


def reports_of(folders: Sequence[Path]) -> list[tuple[list[Fault], tuple[str, ...]]]:
    """Returns every fault of each submission: manifest, names of others, weights, configs and its controls' files.

    Beside them stand sentences about what is ignored in its own files.

    A manifest with faults does not hide those of the weights, where it says
    where they lie. Faults of manifests beside it are not its own.

    Args:
        folders: Folders of the submissions.
    """
    # Read once for all that lie together: each would read all of them.
    beside = {
        directory: manifest.beside(directory)
        for directory in {folder.absolute().parent for folder in folders}
        if directory.is_dir()
    }
    return [_report(folder, *beside.get(folder.absolute().parent, ({}, set()))) for folder in folders]


def _report(folder: Path, found: Mapping[str, Submission], broken: set[str]) -> tuple[list[Fault], tuple[str, ...]]:
    told: list[str] = []
    notes: tuple[str, ...] = ()
    try:
        submission, together, told = manifest.load_beside(folder, found, broken)
    except ManifestError as refused:
        told += hub.with_commits(refused.faults, manifest.stated(folder))
        place = manifest.local_weights(folder)
        if place is not None:
            told += _weights_faults(*place)
    else:
        try:
            notes = folder_scan.scan(submission, together)
        except UnsafeSubmissionError as refused:
            told += refused.faults
        try:
            target_shape.check(submission, together)
        except InputError as refused:
            told.append(str(refused))
        on_hub, more = prepare.check_on_hub(submission, together, cache=paths.cache_dir())
        told, notes = [*told, *on_hub], tuple(dict.fromkeys((*notes, *more)))
    return [
        fault if isinstance(fault, Fault) else Fault(fault, file=str(folder)) for fault in dict.fromkeys(told)
    ], notes


def _weights_faults(weights: Path, kind: str) -> tuple[str, ...]:
    try:
        folder_scan.scan_folder(weights, adapter=kind == "lora_adapter", quantized=kind == "quantized_checkpoint")
    except UnsafeSubmissionError as refused:
        return refused.faults
    except (OSError, RuntimeError, UnicodeError) as error:
        return (f"{weights}: its files can't be read ({type(error).__name__}): give plain files with plain names.",)
    return ()
