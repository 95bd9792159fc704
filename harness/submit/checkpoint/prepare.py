"""From a submission to one checkpoint; adapters are merged once, before quantization.

A checkpoint that was submitted quantized stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import tokenizer as tokenizer_file
from harness.errors import Fault, InputError, UnsafeSubmissionError
from harness.provenance import sha256_files, sha256_json, version_of
from harness.records import Checkpoint, Submission
from harness.shards import PACKING_FILES
from harness.submit.checkpoint import hub
from harness.submit.checkpoint.hub_answers import HubUnavailableError
from harness.submit.checkpoint.merge_adapter import merge, write_once, write_rounded
from harness.submit.scan import gguf as gguf_header
from harness.submit.scan.folder import check_base, gguf_file, hub_base, read_tensors, scan_folder
from harness.submit.scan.model_config import check_quantization, read_config
from harness.submit.scan.safetensors import DTYPE_NAMES, Tensor
from harness.submit.weight_files import HUB, folder_digest, weights_digest

__all__ = ["load_tokenizer", "prepare", "weights_digest"]

# Part of a merged checkpoint's name: raise it when merging changes.
_MERGE_VERSION = 1


def _dtype_of(tensors: Mapping[str, Tensor]) -> str:
    """Returns the dtype that most weights of a model have."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.end - tensor.start
    return DTYPE_NAMES[sizes.most_common(1)[0][0]]


def _in_16_bit(folder: Path, cache: Path) -> Path:
    """Returns the folder, or for a float32 model that of its copy rounded once to bfloat16."""
    if _dtype_of(read_tensors(folder, "model")) != "float32":
        return folder
    # bfloat16, since it has float32's range: no weight can overflow.
    return write_once(
        cache / "rounded" / sha256_json([folder_digest(folder), _MERGE_VERSION]),
        lambda scratch: write_rounded(folder, scratch, "bfloat16"),
    )


def _hub_model(reference: str, revision: str | None, cache: Path) -> Path:
    """Returns the scanned folder of a whole model from the hub."""
    folder = hub.download(reference, revision or "", cache)
    scan_folder(folder, adapter=False)
    return folder


def _weights_folder(submission: Submission, cache: Path, notes: list[str]) -> Path:
    """Returns the folder of a submission's own weights, downloaded where they are on the hub; adapters come unscanned.

    Local weights were scanned before.
    """
    if not submission.weights.startswith(HUB):
        return Path(submission.weights)
    folder = hub.download(submission.weights, submission.revision or "", cache)
    if submission.kind != "lora_adapter":
        scan_folder(folder, adapter=False, quantized=submission.kind == "quantized_checkpoint", notes=notes)
    if submission.weights_sha256 is not None:
        _check_stated(submission, "weights_sha256", folder_digest(folder))
    return folder


def _check_stated(submission: Submission, field: str, found: str | None) -> None:
    """Holds the digest of files on the hub against the one that a manifest states, where both are known."""
    stated = getattr(submission, field)
    if None not in (stated, found) and stated != found:
        whose = "weights" if field == "weights_sha256" else "base_model's files"
        path = Path(submission.folder) / "submission.yaml"
        raise UnsafeSubmissionError(
            Fault(
                f"{submission.name}: the digest of its {whose} is {found} and `{field}` in submission.yaml says "
                f"{stated}: they differ: name the commit that was meant, or correct it.",
                file=str(path), field=field,
            )
        )  # fmt: skip


def content_digest(submission: Submission, *, cache: Path) -> str | None:
    """Returns the digest of a submission's weight files, which ``weights_sha256`` in its manifest must say.

    None where they are on the hub and neither they nor their listing is here.

    Raises:
        UnsafeSubmissionError: The folder holds no file of weights.
    """
    if submission.weights.startswith(HUB):
        return hub.content_digest(submission.weights, submission.revision or "", cache)
    return weights_digest(submission)


def _model_folder(submission: Submission, cache: Path, notes: list[str]) -> Path:
    """Returns the folder of a full 16-bit model, downloaded and scanned where it is on the hub."""
    return _in_16_bit(_weights_folder(submission, cache, notes), cache)


def _base_folder(submission: Submission, submissions: Mapping[str, Submission], cache: Path) -> Path:
    """Returns the folder of the 16-bit model that an adapter or a quantized checkpoint was made from."""
    base = submission.base_model or ""
    if base.startswith(HUB):
        folder = _hub_model(base, submission.base_revision, cache)
        check_base(submission, folder)
        return _in_16_bit(folder, cache)
    if base not in submissions or submissions[base].kind != "full_model":
        raise InputError(
            f"{submission.name}: its base_model {base!r} is no full_model among the submissions: name one."
        )
    if submissions[base].weights.startswith(HUB):
        check_base(submission, _hub_model(submissions[base].weights, submissions[base].revision, cache))
    return _model_folder(submissions[base], cache, [])


def _tokenizer_folder(submission: Submission, submissions: Mapping[str, Submission], cache: Path) -> Path:
    """Returns the folder of the tokenizer to score with: the target's, or for a control its own or its base's."""
    owner = submissions.get(submission.target or "", submission)
    reference, revision = owner.weights, owner.revision
    if owner.kind == "lora_adapter":
        base = submissions.get(owner.base_model or "")
        reference, revision = (base.weights, base.revision) if base else (owner.base_model or "", owner.base_revision)
    return _hub_model(reference, revision, cache) if reference.startswith(HUB) else Path(reference)


def tokenizer_digest(submission: Submission, submissions: Mapping[str, Submission]) -> str:
    """Returns the digest of the tokenizer that a submission is scored with; nothing is downloaded for it."""
    owner = submissions.get(submission.target or "", submission)
    reference, revision = owner.weights, owner.revision
    if owner.kind == "lora_adapter" and owner.base_model:
        base = submissions.get(owner.base_model)
        reference, revision = (base.weights, base.revision) if base else (owner.base_model, owner.base_revision)
    if reference.startswith(HUB):
        return sha256_json([reference, revision])
    folder = Path(reference)
    return sha256_files([folder / name for name in hub.TOKENIZER_FILES if (folder / name).is_file()], folder)


def prepare(
    submission: Submission, submissions: Mapping[str, Submission], *, cache: Path, notes: list[str] | None = None
) -> Checkpoint:
    """Returns a submission as one checkpoint on disk: dense in 16 bit, or quantized as it was submitted.

    A full model stays where it is; one in float32 is rounded once to bfloat16.
    A LoRA adapter is merged into its base in float32 and rounded once to the
    base's dtype; the result lies in ``cache`` under the digest of base, adapter
    and peft version and is used again. Merging comes first since an adapter
    kept in 16 bit over a quantized base is another deployment, in which no
    update is rounded away. A quantized checkpoint stays where it is, with the
    folder of its 16-bit base where the manifest names one.

    Args:
        submission: The one to be scored, scanned before.
        submissions: All, to find base and target in.
        cache: Folder for downloads and merged checkpoints.
        notes: Takes sentences about what is ignored in its own files where
            they are on the hub.

    Raises:
        InputError: Not supported, or not downloadable.
        UnsafeSubmissionError: A download that must not be loaded.
    """
    tokenizer = _tokenizer_folder(submission, submissions, cache)
    ignored: list[str] = [] if notes is None else notes
    if submission.kind == "quantized_checkpoint":
        return _as_submitted(submission, submissions, tokenizer, cache, ignored)
    if submission.kind == "full_model":
        folder = _model_folder(submission, cache, ignored)
    else:
        folder = _merged(submission, submissions, cache, ignored)
    return Checkpoint(
        path=str(folder),
        tokenizer_path=str(tokenizer),
        dtype=_dtype_of(read_tensors(folder, "model")),
        sha256=folder_digest(folder),
        merged_from_adapter=submission.kind == "lora_adapter",
    )


def _as_submitted(
    submission: Submission, submissions: Mapping[str, Submission], tokenizer: Path, cache: Path, notes: list[str]
) -> Checkpoint:
    """Returns a quantized checkpoint as it is, its base beside it where the manifest names one."""
    folder = _weights_folder(submission, cache, notes)
    config = read_config(folder / "config.json")
    told = str(config.get("dtype") or config.get("torch_dtype")).rsplit(".", 1)[-1]
    return Checkpoint(
        path=str(folder),
        tokenizer_path=str(tokenizer),
        dtype=told if told in DTYPE_NAMES.values() else "bfloat16",
        sha256=folder_digest(folder),
        merged_from_adapter=False,
        unquantized_path=str(_base_folder(submission, submissions, cache)) if submission.base_model else None,
    )


def downloaded(submission: Submission, submissions: Mapping[str, Submission], *, cache: Path) -> dict[str, str]:
    """Returns the digests of what was downloaded to prepare a submission, by ``hf://owner/name@commit``."""
    first = [submission, submissions.get(submission.target or "")]
    parts = [each for one in first if one for each in (one, submissions.get(one.base_model or "")) if each]
    references = [pair for one in parts
                  for pair in ((one.weights, one.revision), (one.base_model, one.base_revision))]  # fmt: skip
    return hub.digests(references, cache)


def check_on_hub(
    submission: Submission, submissions: Mapping[str, Submission], *, cache: Path
) -> tuple[list[Fault], list[str]]:
    """Checks what scoring a submission would download, before anything large is: configs and headers are fetched.

    Whole models and adapters are scanned as ``prepare`` scans them, but for
    the numbers in the files.

    Args:
        submission: The one to be scored; its local files are ``scan``'s to check.
        submissions: All, to find base and target in.
        cache: Quench's cache.

    Returns:
        Faults, each a sentence, and notes: what is ignored in its own files, and what could not be checked and why.
    """
    faults: list[Fault] = []
    notes: list[str] = []
    target = submissions.get(submission.target or "")
    for part in (submission, target) if target is not None else (submission,):
        _check_parts(part, submissions, cache, faults, notes, notes if part is submission else [])
    return list(dict.fromkeys(faults)), list(dict.fromkeys(notes))


def _check_parts(
    part: Submission, submissions: Mapping[str, Submission], cache: Path, faults: list[Fault], notes: list[str],
    ignored: list[str],
) -> None:  # fmt: skip
    """Checks a submission's base and its own weights, where either is on the hub."""

    def preview(reference: str, revision: str | None) -> Path | None:
        try:
            return hub.preview(reference, revision or "", cache)
        except HubUnavailableError as refused:
            notes.append(f"{refused} Until then it is unchecked.")
        except InputError as refused:
            faults.append(Fault(str(refused), file=part.folder))
        return None

    tensors: dict[str, Tensor] | None = None
    base = submissions.get(part.base_model or "")
    reference, revision = (base.weights, base.revision) if base else (part.base_model or "", part.base_revision)
    if reference.startswith(HUB) and (folder := preview(reference, revision)) is not None:
        with _noting(faults):
            tensors = scan_folder(folder, adapter=False, numbers=False)
        with _noting(faults):
            _check_stated(part, "base_sha256", hub.content_digest(reference, revision or "", cache))
    on_hub, adapter = part.weights.startswith(HUB), part.kind == "lora_adapter"
    if on_hub and base is not None and not reference.startswith(HUB):
        with _noting(faults):
            tensors = read_tensors(Path(reference), "model")
    own = preview(part.weights, part.revision) if on_hub else Path(part.weights)
    # A local adapter on a local base is checked already, and that base by its own.
    if own is not None and (on_hub or (adapter and reference.startswith(HUB) and tensors)):
        with _noting(faults):
            scan_folder(
                own, adapter=adapter, base=tensors, quantized=part.kind == "quantized_checkpoint",
                base_on_hub=hub_base(part, submissions), numbers=False, notes=ignored,
            )  # fmt: skip
    if on_hub:
        with _noting(faults):
            _check_stated(part, "weights_sha256", hub.content_digest(part.weights, part.revision or "", cache))


@contextmanager
def _noting(faults: list[Fault]) -> Iterator[None]:
    try:
        yield
    except UnsafeSubmissionError as refused:
        faults += [fault if isinstance(fault, Fault) else Fault(fault) for fault in refused.faults]
    except (OSError, RuntimeError, UnicodeError):
        # Of local files, whose names or kinds `scan` has refused in its own words.
        pass


def quantization_config(submission: Submission, *, cache: Path) -> Mapping[str, Any]:
    """Returns how a quantized checkpoint says it is packed; of a hub repository only what says so is downloaded.

    Args:
        submission: Of kind ``quantized_checkpoint``.
        cache: Folder for downloads.

    Returns:
        Its ``quantization_config``, checked; for a GGUF file
        ``{"quant_method": "gguf", "types": {GGML type: weights in the blocks}}``.

    Raises:
        InputError: Not downloadable.
        UnsafeSubmissionError: It says nothing that can be read.
    """
    folder = Path(submission.weights)
    if submission.weights.startswith(HUB):
        folder = hub.download(
            submission.weights, submission.revision or "", cache,
            patterns=["config.json", *PACKING_FILES], place="hub-packing",
        )  # fmt: skip
    elif (gguf := gguf_file(folder)) is not None:
        return {"quant_method": "gguf", "types": gguf_header.block_types(gguf_header.read_header(gguf))}
    path = folder / "config.json"
    if not path.is_file():
        raise UnsafeSubmissionError(f"{path}: there is no such file, and nothing else says how the weights are packed.")
    return check_quantization(path, read_config(path))


def _merged(submission: Submission, submissions: Mapping[str, Submission], cache: Path, notes: list[str]) -> Path:
    """Returns the folder of a merged adapter, from the cache where it is there."""
    base = _base_folder(submission, submissions, cache)
    base_tensors = read_tensors(base, "model")
    dtype = _dtype_of(base_tensors)
    adapter = _weights_folder(submission, cache, [])
    # Also for local adapters: the intake has not seen a base on the hub.
    scan_folder(adapter, adapter=True, base=base_tensors, base_on_hub=hub_base(submission, submissions), notes=notes)
    digest = sha256_json([folder_digest(base), folder_digest(adapter), version_of("peft"), _MERGE_VERSION])
    return merge(base, adapter, cache / "merged" / digest, dtype=dtype)


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Returns the tokenizer to score a checkpoint with: its target's; ``harness.tokenizer`` says what is refused."""
    rows = read_config(Path(checkpoint.path) / "config.json").get("vocab_size")
    return tokenizer_file.load_tokenizer(checkpoint.tokenizer_path, vocabulary=rows if isinstance(rows, int) else None)
