"""Everything that is wrong with one submission folder, told at once; nothing of it is loaded."""

from __future__ import annotations

from pathlib import Path

from harness.errors import Fault, ManifestError, UnsafeSubmissionError
from harness.submit import intake, manifest


def faults_of(folder: Path) -> list[Fault]:
    """Returns every fault of a submission: manifest, names of others, weights, configs and its controls' files.

    A manifest with faults does not hide those of the weights, where it says
    where they lie. Faults of manifests beside it are not its own.

    Args:
        folder: Folder of the submission.
    """
    told: list[str] = []
    try:
        submission, beside, told = manifest.load_beside(folder)
    except ManifestError as refused:
        told += refused.faults
        found = manifest.local_weights(folder)
        if found is not None:
            told += _weights_faults(*found)
    else:
        try:
            intake.scan(submission, beside)
        except UnsafeSubmissionError as refused:
            told += refused.faults
    return [fault if isinstance(fault, Fault) else Fault(fault, file=str(folder)) for fault in dict.fromkeys(told)]


def _weights_faults(weights: Path, kind: str) -> tuple[str, ...]:
    try:
        intake.scan_folder(weights, adapter=kind == "lora_adapter", quantized=kind == "quantized_checkpoint")
    except UnsafeSubmissionError as refused:
        return refused.faults
    except (OSError, RuntimeError, UnicodeError) as error:
        return (f"{weights}: its files can't be read ({type(error).__name__}): give plain files with plain names.",)
    return ()
