"""Detects pickles, archives and programs by their first bytes, whatever their names."""

from __future__ import annotations

import io
import pickletools
import re
from pathlib import Path

from harness.errors import Fault, UnsafeSubmissionError

MAX_TEXT = 64 * 1024 * 1024
"""Largest text file, a tokenizer's vocabulary included, in bytes."""

# First bytes of what could carry code or weights past the scan, and where they stand.
_BINARY = (
    (b"\x80\x02", 0, "a pickle"), (b"\x80\x03", 0, "a pickle"), (b"\x80\x04", 0, "a pickle"),
    (b"\x80\x05", 0, "a pickle"), (b"PK\x03\x04", 0, "a zip archive (as torch.save writes)"),
    (b"PK\x05\x06", 0, "an empty zip archive"), (b"\x1f\x8b", 0, "gzip data"), (b"BZh", 0, "bzip2 data"),
    (b"\xfd7zXZ", 0, "xz data"), (b"7z\xbc\xaf", 0, "a 7z archive"), (b"\x89HDF", 0, "an HDF5 file"),
    (b"GGUF", 0, "a GGUF file"), (b"\x93NUMPY", 0, "a NumPy file"), (b"\x7fELF", 0, "a program"),
    (b"MZ", 0, "a program"), (b"#!/", 0, "a script"), (b"\x28\xb5\x2f\xfd", 0, "zstd data"),
    (b"Rar!", 0, "a rar archive"), (b"ustar", 257, "a tar archive"),
)  # fmt: skip

_REFUSED_ENDINGS = frozenset({
    ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".h5", ".hdf5", ".msgpack", ".onnx",
    ".gguf", ".ggml", ".npz", ".npy", ".tar", ".zip", ".gz", ".so", ".dll", ".dylib", ".py", ".pyc", ".ipynb", ".sh",
})  # fmt: skip

# What a trainer needs to go on from, and nobody else.
_LEFT_OVER = re.compile(
    r"(?:optimizer|scheduler|scaler|rng_state|training_args|trainer_state|events\.out)[\w.-]*", re.ASCII | re.IGNORECASE
)

# Binary by nature and read by tokenizers alone.
_TOKENIZER_MODELS = frozenset({"tokenizer.model", "spiece.model", "sentencepiece.bpe.model"})

_ACCEPTED = "weights as .safetensors files, and text"

# No text is this many pickle instructions long by chance.
_MAX_INSTRUCTIONS = 20_000


def _refuse(path: Path, what: str) -> UnsafeSubmissionError:
    return UnsafeSubmissionError(Fault(f"{path}: {what}.", file=str(path), accepted=_ACCEPTED))


def _is_old_pickle(content: bytes) -> bool:
    """Returns whether bytes are a pickle of protocol 0 or 1, which has no first bytes of its own.

    Prose may be instructions by chance ("No." is three), so they must also
    leave one value, or name something to import and call it.
    """
    names = set()
    count = 0
    try:
        for count, (instruction, _, _) in enumerate(pickletools.genops(content), start=1):
            names.add(instruction.name)
            if count == _MAX_INSTRUCTIONS:
                return True
    except (ValueError, OverflowError, IndexError):
        return False
    if names & {"GLOBAL", "INST"} and names & {"REDUCE", "BUILD", "OBJ", "MARK"}:
        return True
    try:
        pickletools.dis(content, out=io.StringIO())
    except (ValueError, IndexError, KeyError):
        return False
    return count > 1


def check_file(path: Path, *, may_be_gguf: bool) -> None:
    """Refuses a file by its first bytes, by an ending that no submission needs, or as a pickle under a text's name.

    Args:
        path: A regular file.
        may_be_gguf: Whether a ``.gguf`` file is welcome; its head is read
            with the weights.

    Raises:
        UnsafeSubmissionError: Anything but safetensors, a tokenizer's model
            and text of at most ``MAX_TEXT`` bytes.
    """
    if may_be_gguf and path.suffix == ".gguf":
        return
    ending = path.suffix.lower()
    if _LEFT_OVER.fullmatch(path.name) and ending not in (".json", ".txt", ".safetensors"):
        raise _refuse(path, "a trainer left it, and it is never opened here: remove it, it is not needed")
    with path.open("rb") as file:
        beginning = file.read(4096)
    for magic, place, what in _BINARY:
        if beginning[place:].startswith(magic):
            raise _refuse(path, f"it is {what}, which is never opened here: weights come as .safetensors files")
    if ending in _REFUSED_ENDINGS:
        raise _refuse(path, f"{path.suffix} files are not accepted: weights come as .safetensors files")
    if path.suffix == ".safetensors" or path.name in _TOKENIZER_MODELS:
        return
    size = path.stat().st_size
    if size > MAX_TEXT:
        raise _refuse(path, f"it has {size} bytes, and at most {MAX_TEXT} are read of a text: remove it or shorten it")
    if _is_old_pickle(path.read_bytes()):
        raise _refuse(path, "it is a pickle, which is never opened here: weights come as .safetensors files")
    if b"\0" in beginning:
        raise _refuse(path, "it is binary and of no accepted kind: only safetensors weights and text come in")
