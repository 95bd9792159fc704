"""Reads and checks the header of a GGUF file before a library opens it.

Every count, length and offset is a stranger's. Each is held against the file's
size before anything is read or reserved for it.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

from harness.errors import Fault, UnsafeSubmissionError
from harness.submit.scan.safetensors import Tensor

_BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
}  # fmt: skip
"""Name, weights in a block and bytes of a block, by the number of each accepted type."""

DENSE = ("F32", "F16", "BF16")

OTHERS = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Names of the types that are not read, by number."""

# struct's letter of each scalar metadata type; 8 is text and 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9

_MOST_TENSORS, _MOST_KEYS, _MOST_ITEMS = 20_000, 4_096, 4_000_000
_MOST_NAME, _MOST_TEXT, _MOST_SIDE = 256, 1 << 22, 1 << 32


class _Head:
    """Reads one number or text after the other, none of it past the file's end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self.place = path, data, 0

    def refuse(self, what: str) -> UnsafeSubmissionError:
        accepted = "a little-endian .gguf file of version 2 or 3, as llama.cpp's tools write it"
        return UnsafeSubmissionError(
            Fault(f"{self._path}: {what}; submit {accepted}.", file=str(self._path), accepted=accepted)
        )

    def take(self, size: int, what: str) -> bytes:
        if size > len(self._data) - self.place:
            raise self.refuse(f"it is cut off: {what} takes {size} bytes at byte {self.place} of {len(self._data)}")
        self.place += size
        return self._data[self.place - size : self.place]

    def number(self, letter: str, what: str) -> Any:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}"), what))[0]

    def text(self, limit: int, what: str) -> bytes:
        length = self.number("Q", what)
        if length > limit:
            raise self.refuse(f"{what} has {length} bytes, and at most {limit} are read")
        return self.take(length, what)

    def name(self, what: str) -> str:
        try:
            return self.text(_MOST_NAME, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.refuse(f"{what} is not UTF-8") from error

    def skip_value(self, kind: int, key: str) -> int:
        """Goes past one metadata value and returns how many items it had."""
        if kind == _TEXT:
            self.text(_MOST_TEXT, f"metadata {key!r}")
            return 1
        if kind in _SCALARS:
            self.take(struct.calcsize(f"<{_SCALARS[kind]}"), f"metadata {key!r}")
            return 1
        if kind != _ARRAY:
            raise self.refuse(f"metadata {key!r} is of type {kind}, which the format does not have")
        inner, count = self.number("I", f"metadata {key!r}"), self.number("Q", f"metadata {key!r}")
        if count > _MOST_ITEMS or inner == _ARRAY or (inner != _TEXT and inner not in _SCALARS):
            raise self.refuse(f"metadata {key!r} is an array of {count} items of type {inner}, which is not read")
        if inner in _SCALARS:
            self.take(count * struct.calcsize(f"<{_SCALARS[inner]}"), f"metadata {key!r}")
        else:
            for _ in range(count):
                self.text(_MOST_TEXT, f"metadata {key!r}")
        return int(count)


def read_header(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a GGUF file by name, without reading their data.

    Shapes are rows first; ``dtype`` is the GGML type's name.

    Raises:
        UnsafeSubmissionError: The file is no GGUF, cut off, claims more than it
            has, names a key or a tensor twice, uses a type that is not read, or
            describes data that overlap or leave more than padding between them.

    Source: ``docs/gguf.md`` in the ggml repository.
    """
    with path.open("rb") as file:
        if path.stat().st_size < 24:
            raise UnsafeSubmissionError(
                Fault(f"{path}: it is too short for a GGUF file: export it anew.", file=str(path))
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _tensors(_Head(path, data), len(data))


def _tensors(head: _Head, size: int) -> dict[str, Tensor]:
    if head.take(4, "its beginning") != b"GGUF":
        raise head.refuse("it doesn't begin with GGUF")
    version = head.number("I", "its version")
    if version not in (2, 3):
        raise head.refuse(f"it has version {version}")
    count, keys = head.number("Q", "its number of tensors"), head.number("Q", "its number of keys")
    if not 0 < count <= _MOST_TENSORS or keys > _MOST_KEYS:
        raise head.refuse(f"it claims {count} tensors and {keys} keys, more than any model that is scored has")
    alignment = _metadata(head, keys)
    told: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = head.name("a tensor's name")
        if name in told:
            raise head.refuse(f"tensor {name!r} stands there twice")
        told[name] = _info(head, name)
    start = -(-head.place // alignment) * alignment
    position = start
    for name, (_, _, offset, length) in sorted(told.items(), key=lambda item: item[1][2]):
        if offset % alignment or not position <= start + offset < position + alignment:
            raise head.refuse(f"the data of tensor {name!r} overlap another tensor's, or leave a gap before them")
        position = start + offset + length
    if not position <= size < position + alignment:
        raise head.refuse(f"its tensors need {position} bytes and it has {size}")
    return {
        name: Tensor(dtype=kind, shape=shape, start=start + offset, end=start + offset + length)
        for name, (kind, shape, offset, length) in told.items()
    }


def _metadata(head: _Head, keys: int) -> int:
    """Goes past the metadata and returns the alignment of the data."""
    alignment, seen, items = 32, set(), 0
    for _ in range(keys):
        key = head.name("a key")
        if key in seen:
            raise head.refuse(f"the key {key!r} is given twice")
        seen.add(key)
        kind = head.number("I", f"metadata {key!r}")
        if key == "general.alignment":
            alignment = head.number("I", f"metadata {key!r}") if kind == 4 else 0
            if alignment not in (8, 16, 32, 64, 128, 256, 4096):
                raise head.refuse("its general.alignment is no power of two from 8 on")
            continue
        items += head.skip_value(kind, key)
        if items > _MOST_ITEMS:
            raise head.refuse(f"its metadata have more than {_MOST_ITEMS} items")
    return alignment


def _info(head: _Head, name: str) -> tuple[str, tuple[int, ...], int, int]:
    """Returns type, shape, offset and bytes of one tensor."""
    what = f"tensor {name!r}"
    rank = head.number("I", what)
    if not 1 <= rank <= 4:
        raise head.refuse(f"{what} has {rank} dimensions")
    sides = [head.number("Q", what) for _ in range(rank)]
    kind, offset = head.number("I", what), head.number("Q", what)
    if kind not in _BLOCKS:
        accepted = ", ".join(each[0] for each in _BLOCKS.values())
        raise head.refuse(f"{what} is of type {OTHERS.get(kind, kind)}, and accepted are {accepted}")
    shown, weights, size = _BLOCKS[kind]
    if not all(0 < side <= _MOST_SIDE for side in sides) or sides[0] % weights:
        raise head.refuse(f"{what} of type {shown} has no usable shape ({sides})")
    return shown, tuple(reversed(sides)), offset, math.prod(sides) // weights * size


def as_model(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors under names in which a config's sizes can be checked: embeddings, layers, MLPs."""
    named = {}
    for name, tensor in tensors.items():
        told = name.replace("token_embd.", "model.embed_tokens.").replace("blk.", "model.layers.")
        named[told.replace(".ffn_", ".mlp.")] = tensor
    return named


def block_types(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Returns how many weights the matrices inside the blocks have in each type."""
    counted: dict[str, int] = {}
    for name, tensor in tensors.items():
        if name.startswith("blk.") and len(tensor.shape) == 2:
            counted[tensor.dtype] = counted.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return counted
