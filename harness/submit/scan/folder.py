"""Scans a submission's folder before a library opens any of its files.

Only safetensors weights and text come in, and GGUF for quantized checkpoints. Files are taken at their first bytes,
not at their names; headers, configs and every number are read by ourselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.errors import InputError, UnsafeSubmissionError
from harness.records import Submission
from harness.shards import BUFFERS, PACKING_FILES, weight_names
from harness.submit.scan import foreign_formats
from harness.submit.scan import gguf as gguf_header
from harness.submit.scan.adapter_config import check_adapter
from harness.submit.scan.adapter_modules import tied_head_fault
from harness.submit.scan.file_types import MAX_TEXT, check_file, noting, regular_files
from harness.submit.scan.model_config import check_model, read_config
from harness.submit.scan.safetensors import ACCEPTED, FLOATS, PACKED, Tensor, check_numbers, read_header
from harness.submit.scan.strict_model import listed, refuse
from harness.submit.strict_parsing import read_json
from harness.submit.weight_files import HUB, folder_digest, weights_digest

# JSON files that a library opens for a model or a tokenizer; all others are read by nobody.
_READ = frozenset({
    "config.json", "adapter_config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "processor_config.json", "preprocessor_config.json",
    "chat_template.json", *PACKING_FILES,
})  # fmt: skip
# `quench unlearn` writes it: no note.
_OWN_LOG = "training_log.json"


def _index(path: Path, folder: Path) -> dict[str, str]:
    """Returns the file name of each tensor as an index tells it."""
    try:
        index = read_json(path, limit=MAX_TEXT)
    except InputError as refused:
        raise refuse(path, str(refused)) from refused
    told = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(told, dict) or set(index) - {"metadata", "weight_map"}:
        raise refuse(path, "it must hold a weight_map, and metadata at most beside it")
    for name in told.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise refuse(path, f"it points at {str(name)[:80]!r}, which is no .safetensors file beside it")
        if not (folder / name).is_file():
            raise refuse(path, f"it points at {name!r}, which is not there")
    return told


def read_tensors(
    folder: Path, stem: str, *, accepted: tuple[str, ...] = ACCEPTED, notes: list[str] | None = None
) -> dict[str, Tensor]:
    """Returns the headers of a folder's weights, one file or indexed shards, as one mapping.

    Buffers that no code reads are left out. Quantized weights may have any name
    where they are one file, or shards of one index.

    Args:
        folder: Folder of the weights.
        stem: ``model`` or ``adapter_model``.
        accepted: Types of numbers that may occur.
        notes: Takes sentences about files and tensors that are ignored.

    Raises:
        UnsafeSubmissionError: Files are missing, beside the point, twice
            there or unsound.
    """
    ignored: list[str] = [] if notes is None else notes
    present = {path.name for path in folder.glob("*.safetensors")}
    if copies := present - set(weight_names(present)):
        ignored.append(f"{listed(copies)}: ignored, a second copy of the weights.")
    present -= copies
    indexes = sorted(path.name for path in folder.glob("*.safetensors.index.json"))
    if accepted is PACKED and not (folder / f"{stem}.safetensors").is_file():
        own = indexes if indexes else sorted(present)
        stem = own[0].removesuffix(".index.json").removesuffix(".safetensors") if len(own) == 1 else stem
    single, index_path = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    index = _index(index_path, folder) if index_path.is_file() else None
    wanted = {single.name} if index is None else set(index.values())
    if present != wanted:
        surplus, missing = sorted(present - wanted), sorted(wanted - present)
        what = f"{', '.join(surplus)} belongs to nothing" if surplus else f"{', '.join(missing)} is missing"
        raise refuse(folder, f"{what}: weights are {single.name}, or the shards of {index_path.name}")
    tensors: dict[str, Tensor] = {}
    for name in sorted(wanted):
        header = read_header(folder / name, accepted=accepted)
        for tensor in header:
            if tensor in tensors or (index is not None and index.get(tensor) != name):
                raise refuse(folder / name, f"tensor {tensor!r} stands in two files, or not where the index says")
        tensors |= header
    lost = sorted(set(index or ()) - set(tensors))
    if lost:
        raise refuse(index_path, f"no file holds tensor {lost[0]!r}")
    if buffers := {name for name in tensors if BUFFERS.fullmatch(name)}:
        ignored.append(f"{single.name}: ignored, since no code reads such buffers: {listed(buffers)}.")
    return {name: tensor for name, tensor in tensors.items() if name not in buffers}


def gguf_file(folder: Path) -> Path | None:
    """Returns the one GGUF file that holds a quantized checkpoint's weights, None where they are safetensors.

    Raises:
        UnsafeSubmissionError: There are several, or other weights beside it.
    """
    found = sorted(folder.glob("*.gguf"))
    if len(found) > 1 or (found and any(folder.glob("*.safetensors"))):
        raise refuse(folder, "it holds more than one model: keep one .gguf file, or the .safetensors files")
    return found[0] if found else None


def scan_folder(
    folder: Path, *, adapter: bool, base: Mapping[str, Tensor] | None = None, quantized: bool = False,
    base_on_hub: str | None = None, numbers: bool = True, notes: list[str] | None = None,
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
        notes: Takes a sentence for whatever is ignored.

    Raises:
        UnsafeSubmissionError: Something in it must not be loaded.
    """
    if not folder.is_dir():
        raise refuse(folder, "there is no such folder: put the weights there, or change `weights` in submission.yaml")
    ignored: list[str] = [] if notes is None else notes
    faults: list[str] = []
    unread = set()
    for path in regular_files(folder):
        with noting(faults):
            check_file(path, may_be_gguf=quantized and path.parent == folder)
            # An index is checked with its shards; deeper folders are never read.
            if path.suffix.lower() == ".json" and not path.name.endswith(".index.json") and path.parent == folder:
                if path.name.lower() in _READ:
                    read_config(path, limit=MAX_TEXT)
                elif path.name != _OWN_LOG:
                    unread.add(path.name)
    if unread:
        ignored.append(f"{listed(unread)}: ignored, since no code reads such files.")
    config = folder / ("adapter_config.json" if adapter else "config.json")
    if not faults and (told := _another(folder, config, adapter)):
        # Whatever else is wrong follows from it.
        raise refuse(*told)
    tensors: dict[str, Tensor] = {}
    gguf: Path | None = None
    with noting(faults):
        gguf = gguf_file(folder) if quantized else None
        stem = "adapter_model" if adapter else "model"
        tensors = _tensors(folder, gguf, stem, PACKED if quantized else ACCEPTED, ignored)
    with noting(faults):
        if not config.is_file():
            raise refuse(
                config, "there is no such file, and the weights can't be read without it: save_pretrained writes it"
            )
        if adapter and (named := foreign_formats.of_tensors(tensors)):
            raise refuse(folder, foreign_formats.sentence(named, adapter=True))
        if tensors and adapter:
            check_adapter(config, tensors, base, base_on_hub, notes=ignored)
        elif tensors:
            packing = ("config" if gguf is None else "gguf") if quantized else None
            check_model(config, tensors, quantization=packing, notes=ignored)
            if numbers and packing is None and (wrong := tied_head_fault(tensors)):
                raise refuse(folder, wrong)
    rounded = "" if adapter or quantized else _rounded(tensors)
    for name in weight_names(path.name for path in folder.iterdir()) if tensors and numbers else ():
        with noting(faults):
            check_numbers(folder / name, rounded=rounded)
    if faults:
        raise UnsafeSubmissionError(*faults)
    return tensors


def _another(folder: Path, config: Path, adapter: bool) -> tuple[Path, str] | None:
    """Returns what is wrong with a folder that is of a foreign format, or two things in one, with its path."""
    if config.is_file() and (named := foreign_formats.of_config(read_config(config, limit=MAX_TEXT))):
        return folder, foreign_formats.sentence(named, adapter=adapter)
    if not (folder / "model.safetensors").exists() and (folder / "consolidated.safetensors").exists():
        return folder, "consolidated.safetensors is Mistral's own format, which is not read: submit model.safetensors"
    beside = ("model.safetensors", "model.safetensors.index.json") if adapter else (
        "adapter_config.json", "adapter_model.safetensors")  # fmt: skip
    if any((folder / name).exists() for name in beside) and config.is_file():
        kind = "lora_adapter" if adapter else "full_model"
        told = "a whole model and an adapter, which transformers attaches whenever it loads the model"
        return folder, f"it holds {told}: keep one of the two in the folder of this {kind}"
    return None


def _rounded(tensors: Mapping[str, Tensor]) -> str:
    """Returns the 16-bit type that a model is scored in: that of most of its numbers, BF16 for a float32 one."""
    sizes = dict.fromkeys(FLOATS, 0)
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.end - tensor.start
    most = max(sizes, key=lambda kind: sizes[kind])
    return "BF16" if most == "F32" else most


def _tensors(
    folder: Path, gguf: Path | None, stem: str, accepted: tuple[str, ...], notes: list[str]
) -> dict[str, Tensor]:
    """Returns the headers of a folder's weights, safetensors or the one GGUF file."""
    if gguf is None:
        return read_tensors(folder, stem, accepted=accepted, notes=notes)
    header = gguf_header.read_header(gguf)
    dense = sorted(set(gguf_header.block_types(header)) & set(gguf_header.DENSE))
    if dense:
        raise refuse(gguf, f"it leaves layers in {', '.join(dense)}: quantize every matrix inside the blocks")
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


def scan(submission: Submission, submissions: Mapping[str, Submission]) -> tuple[str, ...]:
    """Checks everything that scoring a submission would load: its own files, its base's and its target's.

    Hub repositories are not here yet; ``checkpoint.prepare`` scans them
    between downloading and loading.

    Args:
        submission: The one to be scored.
        submissions: All, to find base and target in.

    Returns:
        Sentences about what is ignored in the submission's own files.

    Raises:
        UnsafeSubmissionError: Something must not be loaded; the message says
            which file, what is wrong and what is accepted, and ``faults`` has
            one sentence for each such file.
    """
    base = submissions.get(submission.base_model or "")
    base_tensors, faults, notes = None, list[str](), list[str]()
    try:
        if base is not None:
            with noting(faults):
                base_tensors = _scan_one(base, None, None, [])
                if not base.weights.startswith(HUB):
                    check_base(submission, Path(base.weights))
        with noting(faults):
            _scan_one(submission, base_tensors, hub_base(submission, submissions), notes)
    except (OSError, RuntimeError, UnicodeError) as error:
        # A loop of links, a folder in place of a file, a name no file system takes.
        raise UnsafeSubmissionError(
            f"{submission.name}: its files can't be read ({type(error).__name__}): give plain files with plain names."
        ) from error
    # The target's tokenizer is what an entry is scored with.
    target = submissions.get(submission.target or "")
    if target is not None and target is not base:
        with noting(faults):
            scan(target, submissions)
    if faults:
        raise UnsafeSubmissionError(*faults)
    return tuple(dict.fromkeys(notes))


def _scan_one(
    submission: Submission, base: Mapping[str, Tensor] | None, base_on_hub: str | None, notes: list[str]
) -> dict[str, Tensor] | None:
    if submission.weights.startswith(HUB):
        return None
    folder = Path(submission.weights)
    if not folder.resolve().is_relative_to(Path(submission.folder).resolve()):
        raise refuse(folder, f"it lies outside the folder of {submission.name}: keep the weights inside")
    kind = submission.kind
    tensors = scan_folder(
        folder, adapter=kind == "lora_adapter", base=base, quantized=kind == "quantized_checkpoint",
        base_on_hub=base_on_hub, notes=notes,
    )  # fmt: skip
    _check_digest(submission)
    return tensors
