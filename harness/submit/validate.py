"""All of `quench validate`: faults of manifest, weights and configs of each folder; loads no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import paths
from harness.errors import Fault, ManifestError, UnsafeSubmissionError
from harness.records import Submission
from harness.submit.checkpoint import hub, prepare
from harness.submit.manifest import load as manifest
from harness.submit.scan import folder as folder_scan


def faults_of(folders: Sequence[Path]) -> list[list[Fault]]:
    """Returns every fault of each submission: manifest, names of others, weights, configs and its controls' files.

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
    return [_faults(folder, *beside.get(folder.absolute().parent, ({}, set()))) for folder in folders]


def _faults(folder: Path, found: Mapping[str, Submission], broken: set[str]) -> list[Fault]:
    told: list[str] = []
    try:
        submission, together, told = manifest.load_beside(folder, found, broken)
    except ManifestError as refused:
        told += hub.with_commits(refused.faults, manifest.stated(folder))
        place = manifest.local_weights(folder)
        if place is not None:
            told += _weights_faults(*place)
    else:
        try:
            folder_scan.scan(submission, together)
        except UnsafeSubmissionError as refused:
            told += refused.faults
        told += prepare.check_on_hub(submission, together, cache=paths.cache_dir())[0]
    return [fault if isinstance(fault, Fault) else Fault(fault, file=str(folder)) for fault in dict.fromkeys(told)]


def _weights_faults(weights: Path, kind: str) -> tuple[str, ...]:
    try:
        folder_scan.scan_folder(weights, adapter=kind == "lora_adapter", quantized=kind == "quantized_checkpoint")
    except UnsafeSubmissionError as refused:
        return refused.faults
    except (OSError, RuntimeError, UnicodeError) as error:
        return (f"{weights}: its files can't be read ({type(error).__name__}): give plain files with plain names.",)
    return ()
