"""Lists a folder's files, and detects pickles, archives and programs by their first bytes, whatever their names."""

from __future__ import annotations

import contextlib
import io
import os
import pickletools
import re
import stat
from collections.abc import Iterator
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

_MAX_FILES = 2000

_ACCEPTED = "weights as .safetensors files, and text"

# No text is this many pickle instructions long by chance.
_MAX_INSTRUCTIONS = 20_000


def _refuse(path: Path, what: str) -> UnsafeSubmissionError:
    return UnsafeSubmissionError(Fault(f"{path}: {what}.", file=str(path), accepted=_ACCEPTED))


@contextlib.contextmanager
def noting(faults: list[str]) -> Iterator[None]:
    """Keeps what is refused inside for later, so that the next thing is looked at as well."""
    try:
        yield
    except UnsafeSubmissionError as refused:
        faults += [fault for fault in refused.faults if fault not in faults]


def regular_files(folder: Path) -> list[Path]:
    """Returns the regular files of a folder; links that lead out of it, special files and hidden names are refused."""
    root, found = folder.resolve(), list[Path]()
    faults: list[str] = []
    for current, directories, names in os.walk(folder):
        with noting(faults):
            _check_names(Path(current), [*directories, *names])
        for name in sorted([*directories, *names]):
            path = Path(current) / name
            with noting(faults):
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
    if path.suffix == ".safetensors" and beginning[4:9] == b"\0\0\0\0{":
        # The length of a header comes first: 640 bytes are those that a pickle begins with.
        return
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
