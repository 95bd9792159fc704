"""Scans a submission's folder before a library opens any of its files.

Only safetensors weights and text come in, and GGUF for quantized checkpoints. Files are taken at their first bytes,
not at their names; headers, configs and every number are read by ourselves.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.errors import Fault, InputError, UnsafeSubmissionError
from harness.records import Submission
from harness.submit.scan import gguf as gguf_header
from harness.submit.scan.adapter_config import check_adapter
from harness.submit.scan.file_types import MAX_TEXT, check_file
from harness.submit.scan.model_config import check_model, read_config
from harness.submit.scan.safetensors import ACCEPTED, PACKED, Tensor, check_numbers, read_header
from harness.submit.strict_parsing import read_json
from harness.submit.weight_files import HUB, folder_digest, weights_digest

_MAX_FILES = 2000


def _refuse(path: Path, what: str) -> UnsafeSubmissionError:
    return UnsafeSubmissionError(Fault(f"{path}: {what}.", file=str(path)))


@contextlib.contextmanager
def _noting(faults: list[str]) -> Iterator[None]:
    """Keeps what is refused inside for later, so that the next thing is looked at as well."""
    try:
        yield
    except UnsafeSubmissionError as refused:
        faults += [fault for fault in refused.faults if fault not in faults]


def _files(folder: Path) -> list[Path]:
    """Returns the regular files of a folder; links that lead out of it, special files and hidden names are refused."""
    root, found = folder.resolve(), list[Path]()
    faults: list[str] = []
    for current, directories, names in os.walk(folder):
        with _noting(faults):
            _check_names(Path(current), [*directories, *names])
        for name in sorted([*directories, *names]):
            path = Path(current) / name
            with _noting(faults):
                if path.is_symlink() and not path.resolve().is_relative_to(root):
                    raise _refuse(path, "it is a link out of the submission's folder: put the file itself there")
                mode = path.stat().st_mode if path.exists() else 0
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    raise _refuse(path, "it is neither a file nor a folder: remove it")
                if stat.S_ISREG(mode):
                    found.append(path)
            if len(found) > _MAX_FILES:
                raise _refuse(folder, f"it holds more than {_MAX_FILES} files: keep weights, config and tokenizer")
    if faults:
        # Nothing is opened then: reading a pipe or a device would never end.
        raise UnsafeSubmissionError(*faults)
    return found


def _check_names(folder: Path, names: list[str]) -> None:
    """Refuses names that a terminal or a page would show as something else, and such as other file systems merge."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        if not name.isprintable():
            raise _refuse(folder, f"the name {name!r} holds characters that can't be shown: rename the file")
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise _refuse(folder, f"{other!r} and {name!r} differ in case alone, so one hides the other: keep one")


def _index(path: Path, folder: Path) -> dict[str, str]:
    """Returns the file name of each tensor as an index tells it."""
    try:
        index = read_json(path, limit=MAX_TEXT)
    except InputError as refused:
        raise _refuse(path, str(refused)) from refused
    told = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(told, dict) or set(index) - {"metadata", "weight_map"}:
        raise _refuse(path, "it must hold a weight_map, and metadata at most beside it")
    for name in told.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise _refuse(path, f"it points at {str(name)[:80]!r}, which is no .safetensors file beside it")
        if not (folder / name).is_file():
            raise _refuse(path, f"it points at {name!r}, which is not there")
    return told


def read_tensors(folder: Path, stem: str, *, accepted: tuple[str, ...] = ACCEPTED) -> dict[str, Tensor]:
    """Returns the headers of a folder's weights, one file or indexed shards, as one mapping.

    Args:
        folder: Folder of the weights.
        stem: ``model`` or ``adapter_model``.
        accepted: Types of numbers that may occur.

    Raises:
        UnsafeSubmissionError: Files are missing, beside the point, twice
            there or unsound.
    """
    single, index_path = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    present = {path.name for path in folder.glob("*.safetensors")}
    index = _index(index_path, folder) if index_path.is_file() else None
    wanted = {single.name} if index is None else set(index.values())
    if present != wanted:
        surplus, missing = sorted(present - wanted), sorted(wanted - present)
        what = f"{', '.join(surplus)} belongs to nothing" if surplus else f"{', '.join(missing)} is missing"
        raise _refuse(folder, f"{what}: weights are {single.name}, or the shards of {index_path.name}")
    tensors: dict[str, Tensor] = {}
    for name in sorted(wanted):
        header = read_header(folder / name, accepted=accepted)
        for tensor in header:
            if tensor in tensors or (index is not None and index.get(tensor) != name):
                raise _refuse(folder / name, f"tensor {tensor!r} stands in two files, or not where the index says")
        tensors |= header
    lost = sorted(set(index or ()) - set(tensors))
    if lost:
        raise _refuse(index_path, f"no file holds tensor {lost[0]!r}")
    return tensors


def gguf_file(folder: Path) -> Path | None:
    """Returns the one GGUF file that holds a quantized checkpoint's weights, None where they are safetensors.

    Raises:
        UnsafeSubmissionError: There are several, or other weights beside it.
    """
    found = sorted(folder.glob("*.gguf"))
    if len(found) > 1 or (found and any(folder.glob("*.safetensors"))):
        raise _refuse(folder, "it holds more than one model: keep one .gguf file, or the .safetensors files")
    return found[0] if found else None


def scan_folder(
    folder: Path, *, adapter: bool, base: Mapping[str, Tensor] | None = None, quantized: bool = False,
    base_on_hub: str | None = None, numbers: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    """Scans one folder of weights and returns the tensors' headers.

    Args:
        folder: The folder.
        adapter: Whether it holds a LoRA adapter, not a whole model.
        quantized: Whether it holds a quantized checkpoint.
        base: Tensors of the base model, for adapters, where they are here.
        base_on_hub: For adapters: ``hub_base`` of the submission.
        numbers: Whether every number of the weights is read; of files whose
            weights are not here it can't be.

    Raises:
        UnsafeSubmissionError: Something in it must not be loaded.
    """
    if not folder.is_dir():
        raise _refuse(folder, "there is no such folder: put the weights there, or change `weights` in submission.yaml")
    faults: list[str] = []
    for path in _files(folder):
        with _noting(faults):
            check_file(path, may_be_gguf=quantized and path.parent == folder)
            # An index is checked with its shards; deeper folders are never read.
            if path.suffix.lower() == ".json" and not path.name.endswith(".index.json") and path.parent == folder:
                read_config(path, limit=MAX_TEXT)
    tensors: dict[str, Tensor] = {}
    gguf: Path | None = None
    with _noting(faults):
        gguf = gguf_file(folder) if quantized else None
        tensors = _tensors(folder, gguf, "adapter_model" if adapter else "model", PACKED if quantized else ACCEPTED)
    config = folder / ("adapter_config.json" if adapter else "config.json")
    with _noting(faults):
        if not config.is_file():
            raise _refuse(
                config, "there is no such file, and the weights can't be read without it: save_pretrained writes it"
            )
        if tensors and adapter:
            check_adapter(config, tensors, base, base_on_hub)
        elif tensors:
            check_model(config, tensors, quantization=("config" if gguf is None else "gguf") if quantized else None)
    for path in sorted(folder.glob("*.safetensors")) if tensors and numbers else ():
        with _noting(faults):
            check_numbers(path)
    if faults:
        raise UnsafeSubmissionError(*faults)
    return tensors


def _tensors(folder: Path, gguf: Path | None, stem: str, accepted: tuple[str, ...]) -> dict[str, Tensor]:
    """Returns the headers of a folder's weights, safetensors or the one GGUF file."""
    if gguf is None:
        return read_tensors(folder, stem, accepted=accepted)
    header = gguf_header.read_header(gguf)
    dense = sorted(set(gguf_header.block_types(header)) & set(gguf_header.DENSE))
    if dense:
        raise _refuse(gguf, f"it leaves layers in {', '.join(dense)}: quantize every matrix inside the blocks")
    return gguf_header.as_model(header)


def _check_digest(submission: Submission) -> None:
    found = weights_digest(submission)
    if submission.weights_sha256 not in (None, found):
        raise UnsafeSubmissionError(
            f"{submission.name}: the weights' digest is {found} and `weights_sha256` in submission.yaml says "
            f"{submission.weights_sha256}: they differ: submit the files that were meant, or correct it."
        )


def check_base(submission: Submission, folder: Path) -> None:
    """Holds the files of a submission's base against the digest that its manifest states, if any.

    Raises:
        UnsafeSubmissionError: They differ.
    """
    if submission.base_sha256 is not None and (found := folder_digest(folder)) != submission.base_sha256:
        raise UnsafeSubmissionError(
            f"{submission.name}: the digest of its base_model's files is {found} and `base_sha256` in submission.yaml "
            f"says {submission.base_sha256}: they differ: name the base that was meant, or correct it."
        )


def hub_base(submission: Submission, submissions: Mapping[str, Submission]) -> str | None:
    """Returns the repository of a submission's base as ``hf://owner/name``, None where the base lies here."""
    named = submission.base_model or ""
    reference = submissions[named].weights if named in submissions else named
    return reference if reference.startswith(HUB) else None


def scan(submission: Submission, submissions: Mapping[str, Submission]) -> None:
    """Checks everything that scoring a submission would load: its own files, its base's and its target's.

    Hub repositories are not here yet; ``checkpoint.prepare`` scans them
    between downloading and loading.

    Args:
        submission: The one to be scored.
        submissions: All, to find base and target in.

    Raises:
        UnsafeSubmissionError: Something must not be loaded; the message says
            which file, what is wrong and what is accepted, and ``faults`` has
            one sentence for each such file.
    """
    base = submissions.get(submission.base_model or "")
    base_tensors, faults = None, list[str]()
    try:
        if base is not None:
            with _noting(faults):
                base_tensors = _scan_one(base, None)
                if not base.weights.startswith(HUB):
                    check_base(submission, Path(base.weights))
        with _noting(faults):
            _scan_one(submission, base_tensors, hub_base(submission, submissions))
    except (OSError, RuntimeError, UnicodeError) as error:
        # A loop of links, a folder in place of a file, a name no file system takes.
        raise UnsafeSubmissionError(
            f"{submission.name}: its files can't be read ({type(error).__name__}): give plain files with plain names."
        ) from error
    # The target's tokenizer is what an entry is scored with.
    target = submissions.get(submission.target or "")
    if target is not None and target is not base:
        with _noting(faults):
            scan(target, submissions)
    if faults:
        raise UnsafeSubmissionError(*faults)


def _scan_one(
    submission: Submission, base: Mapping[str, Tensor] | None, base_on_hub: str | None = None
) -> dict[str, Tensor] | None:
    if submission.weights.startswith(HUB):
        return None
    folder = Path(submission.weights)
    if not folder.resolve().is_relative_to(Path(submission.folder).resolve()):
        raise _refuse(folder, f"it lies outside the folder of {submission.name}: keep the weights inside")
    kind = submission.kind
    tensors = scan_folder(
        folder, adapter=kind == "lora_adapter", base=base, quantized=kind == "quantized_checkpoint",
        base_on_hub=base_on_hub,
    )  # fmt: skip
    _check_digest(submission)
    return tensors
