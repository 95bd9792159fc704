"""Reads and checks safetensors files before a library opens them: header, layout, every number."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy

from harness.errors import Fault, InputError, UnsafeSubmissionError
from harness.shards import BUFFERS
from harness.submit.scan.foreign_formats import DTYPES
from harness.submit.strict_parsing import parse_json

# The format's own limit is 100 MB; a model of 10,000 tensors takes 1 MB.
_MAX_HEADER = 32 * 1024 * 1024
_MAX_DIMENSION, _MAX_RANK = 1 << 32, 8

# More would be one mistake made often.
_MAX_TOLD = 20

_CHUNK = 16 * 1024 * 1024

# Bytes of one number, and the bits of infinity without its sign: as integers, those of NaN are above.
_FLOATS = {"BF16": (2, 0x7F80), "F16": (2, 0x7C00), "F32": (4, 0x7F800000)}
FLOATS = ACCEPTED = tuple(_FLOATS)

# Bits of the least number that rounds to infinity in a 16-bit type, by that type and the one it is stored in.
_TOO_LARGE = {("BF16", "F32"): 0x7F7F8000, ("F16", "F32"): 0x477FF000, ("F16", "BF16"): 0x4780}

# Bytes of one number of the types that packed codes, zero points and their like are stored in.
_INTEGERS = {"U8": 1, "I8": 1, "I32": 4, "I64": 8}
PACKED = (*ACCEPTED, *_INTEGERS)

_BUFFER_TYPES = {**{kind: size for kind, (size, _) in _FLOATS.items()}, **_INTEGERS, "BOOL": 1, "F64": 8}

DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""torch's name of each accepted dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor as a header describes it; ``start`` and ``end`` are bytes from the beginning of ``file``."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    file: Path | None = None


def _refuse(path: Path, what: str) -> UnsafeSubmissionError:
    sentence = f"{path}: {what}; save the weights anew with safetensors (save_pretrained does) and submit that file."
    return UnsafeSubmissionError(
        Fault(sentence, file=str(path), accepted="a file as the safetensors library writes it")
    )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_DIMENSION * 1024


def _tensor(path: Path, name: str, told: object, data_start: int, accepted: tuple[str, ...]) -> Tensor:
    if not isinstance(told, dict) or set(told) != {"dtype", "shape", "data_offsets"}:
        raise _refuse(path, f"the header's entry for {name!r} is not a dtype, a shape and two offsets")
    dtype, shape, offsets = told["dtype"], told["shape"], told["data_offsets"]
    sizes = {kind: size for kind, size in _BUFFER_TYPES.items() if kind in accepted or BUFFERS.fullmatch(name)}
    if not isinstance(dtype, str) or dtype not in sizes:
        foreign = f" ({DTYPES[dtype]}'s)" if isinstance(dtype, str) and dtype in DTYPES else ""
        told = f"{str(dtype)[:20]!r}{foreign}, and {', '.join(accepted)} are accepted"
        raise _refuse(path, f"tensor {name!r} is stored as {told}")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(map(_whole, shape)):
        raise _refuse(path, f"tensor {name!r} has no usable shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise _refuse(path, f"tensor {name!r} has no usable offsets")
    size = math.prod(shape) * sizes[dtype]
    if offsets[1] - offsets[0] != size:
        raise _refuse(path, f"tensor {name!r} spans {offsets[1] - offsets[0]} bytes, and its shape needs {size}")
    start, end = (data_start + offset for offset in offsets)
    return Tensor(dtype=dtype, shape=tuple(shape), start=start, end=end, file=path)


def read_header(path: Path, *, accepted: tuple[str, ...] = ACCEPTED) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file by name, without reading their data.

    Args:
        path: The file.
        accepted: Types that may occur: ``ACCEPTED``, or ``PACKED`` for
            quantized checkpoints.

    Raises:
        UnsafeSubmissionError: The header is too long for the file or for us,
            not strict JSON, names a tensor twice, uses another dtype than
            ``accepted``, or describes data that overlap, leave gaps or go past
            the file's end.

    Source: the format's description in the safetensors repository, README.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _refuse(path, f"it is cut off or no safetensors file: a header of {length} bytes in {size} bytes")
        if length > _MAX_HEADER:
            raise _refuse(path, f"its header has {length} bytes, and at most {_MAX_HEADER} are read")
        try:
            header = parse_json(file.read(length).decode("utf-8"))
        except (InputError, UnicodeDecodeError) as error:
            told = str(error) if isinstance(error, InputError) else "it is not UTF-8"
            raise _refuse(path, f"its header can't be read: {told}") from error
    if not isinstance(header, dict):
        raise _refuse(path, "its header is no mapping")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refuse(path, "its metadata are not text")
    tensors: dict[str, Tensor] = {}
    faults: list[str] = []
    for name, told in header.items():
        try:
            tensors[name] = _tensor(path, name, told, 8 + length, accepted)
        except UnsafeSubmissionError as refused:
            faults += refused.faults
        if len(faults) == _MAX_TOLD:
            break
    if faults:
        # Where data lie is asked only once every tensor says so.
        raise UnsafeSubmissionError(*faults)
    _check_layout(path, tensors, 8 + length, size)
    return tensors


def _check_layout(path: Path, tensors: dict[str, Tensor], start: int, end: int) -> None:
    """Refuses data that don't fill the file from header to end, one tensor after the other."""
    if not tensors:
        raise _refuse(path, "it holds no tensor")
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start < position:
            raise _refuse(path, f"the data of tensor {name!r} overlap another tensor's")
        if tensor.start > position:
            raise _refuse(path, f"{tensor.start - position} bytes before tensor {name!r} belong to nothing")
        position = tensor.end
    if position > end:
        raise _refuse(path, f"it is cut off: its header describes {position} bytes and it has {end}")
    if position < end:
        raise _refuse(path, f"{end - position} bytes after the last tensor belong to nothing")


@functools.lru_cache(maxsize=4096)
def _unusable(path: str, size: int, modified_ns: int, rounded: str) -> tuple[str, ...]:
    """Returns what is wrong with numbers, one text for each tensor; the file's state is part of the key."""
    with Path(path).open("rb") as file:
        found = []
        for name, tensor in read_header(Path(path), accepted=PACKED).items():
            if tensor.dtype not in _FLOATS or BUFFERS.fullmatch(name):
                continue
            largest, infinity = _largest_bits(file, tensor), _FLOATS[tensor.dtype][1]
            if largest >= infinity:
                found.append(f"tensor {name!r} holds NaN or infinity")
            elif largest >= _TOO_LARGE.get((rounded, tensor.dtype), infinity):
                found.append(f"tensor {name!r} holds a number that is infinity in {DTYPE_NAMES[rounded]}")
        return tuple(found)


def _largest_bits(file: BinaryIO, tensor: Tensor) -> int:
    """Returns the bits of a tensor's largest number without its sign, or those of NaN or infinity where it has such."""
    width, infinity = _FLOATS[tensor.dtype]
    left, largest = tensor.end - tensor.start, 0
    file.seek(tensor.start)
    while left > 0 and largest < infinity:
        block = file.read(min(left, _CHUNK))
        if not block:
            return infinity
        left -= len(block)
        numbers = numpy.frombuffer(block, dtype="<u2" if width == 2 else "<u4")
        largest = max(largest, int((numbers & (2 ** (8 * width - 1) - 1)).max()))
    return largest


def check_numbers(path: Path, *, rounded: str = "") -> None:
    """Reads every floating number of a safetensors file once, in blocks of 16 MB.

    Args:
        path: The file.
        rounded: ``BF16`` or ``F16`` where the weights are scored or merged in that type.

    Raises:
        UnsafeSubmissionError: One is NaN or infinite, or becomes infinite when
            it is rounded; a sentence for each tensor that holds such.
    """
    stat = path.stat()
    told = list(_unusable(str(path.resolve()), stat.st_size, stat.st_mtime_ns, rounded))
    if len(told) > _MAX_TOLD:
        told[_MAX_TOLD:] = [f"{len(told) - _MAX_TOLD} more tensors have faults like these"]
    if told:
        raise UnsafeSubmissionError(
            *(Fault(f"{path}: {each}: train or export it again.", file=str(path), accepted="finite numbers")
              for each in told)
        )  # fmt: skip


def _float32(file: BinaryIO, tensor: Tensor, first: int, count: int) -> Any:
    """Returns some of a tensor's numbers, widened to float32."""
    width = _FLOATS[tensor.dtype][0]
    file.seek(tensor.start + first * width)
    block = file.read(count * width)
    if tensor.dtype == "BF16":
        return (numpy.frombuffer(block, dtype="<u2").astype("<u4") << 16).view("<f4")
    return numpy.frombuffer(block, dtype="<f2" if tensor.dtype == "F16" else "<f4").astype("<f4")


def _rounded(numbers: Any, dtype: str) -> Any:
    """Returns finite float32 numbers rounded to another dtype, half to even, in float32 again."""
    if dtype == "BF16":
        bits = numbers.view("<u4")
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype("<u4").view("<f4")
    with numpy.errstate(over="ignore"):
        return numbers.astype("<f2").astype("<f4") if dtype == "F16" else numbers


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors of files hold the same numbers, or one holds the other's rounded to its dtype."""
    if one.shape != other.shape or one.file is None or other.file is None:
        return False
    equal = [True, True]
    with one.file.open("rb") as first, other.file.open("rb") as second:
        for start in range(0, total := math.prod(one.shape), _CHUNK // 4):
            count = min(_CHUNK // 4, total - start)
            left, right = _float32(first, one, start, count), _float32(second, other, start, count)
            equal[0] &= numpy.array_equal(_rounded(left, other.dtype), right)
            equal[1] &= numpy.array_equal(left, _rounded(right, one.dtype))
            if not any(equal):
                return False
    return True
