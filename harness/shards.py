"""Reads and writes single tensors of safetensors weights: one file, or several with an index."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

SHARD_BYTES = 2**29
"""Bytes from which on a file is closed and the next one begun; so much is in memory while weights are written."""

INDEX = "model.safetensors.index.json"

BUFFERS = re.compile(
    r"(?:.+\.)?(?:layers\.\d+\.)?(?:(?:self_attn|attention)\.(?:bias|masked_bias|rotary_emb\.inv_freq)|rotary_emb\.inv_freq|"
    r"position_ids)"
)
"""Masks, frequencies and positions that older programs stored and that no code reads: they may be of any type."""

PACKING_FILES: Mapping[str, Mapping[str, str]] = {
    "quantize_config.json": {"quant_method": "gptq"}, "quant_config.json": {"quant_method": "awq"},
    "quantization_config.json": {},
}  # fmt: skip
"""Files in which libraries of old say how codes are packed, with what each means that does not name its method."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file, which is open only while it is read: what was mapped would stay resident.

    Attributes:
        path: The file.
        name: The tensor's name in it.
    """

    path: Path
    name: str

    def read(self) -> Any:
        """Returns the tensor in its own dtype, on the CPU."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt", device="cpu") as file:
            return file.get_tensor(self.name)

    def shape(self) -> tuple[int, ...]:
        """Returns the tensor's shape; only the file's header is read."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt", device="cpu") as file:
            return tuple(file.get_slice(self.name).get_shape())


def weight_names(names: Iterable[str]) -> list[str]:
    """Returns which of a folder's files are its safetensors weights: without Mistral's second copy of them."""
    found = sorted(name for name in names if name.endswith(".safetensors"))
    return [name for name in found if not name.startswith("consolidated")] or found


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a folder's safetensors files by name, file by file."""
    from safetensors import safe_open

    index = folder / INDEX
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        # transformers reads model.safetensors alone where there is one.
        names = weight_names(path.name for path in folder.iterdir())
        names = ["model.safetensors"] if "model.safetensors" in names else names
    found: dict[str, StoredTensor] = {}
    for name in names:
        with safe_open(folder / name, framework="pt", device="cpu") as file:
            found |= {tensor: StoredTensor(folder / name, tensor) for tensor in file.keys()}  # noqa: SIM118 - no mapping
    return found


def count_numbers(folder: Path) -> int:
    """Returns how many numbers a folder's weights hold; only the files' headers are read."""
    return sum(prod(tensor.shape()) for tensor in stored_tensors(folder).values())


class ShardWriter:
    """Writes a model's tensors as they come, into ``model.safetensors`` or shards with an index.

    A context manager: what was put last is written when the block ends without
    an exception.

    Args:
        folder: Where to, an empty folder.
        shard_bytes: Bytes of a file from which on the next one is begun.
    """

    def __init__(self, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._waiting: dict[str, Any] = {}
        self._waiting_bytes = self._total_bytes = 0
        self._shards: list[list[str]] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()

    def put(self, name: str, tensor: Any) -> None:
        """Takes one tensor, any device; it is on disk once its file is full."""
        self._waiting[name] = tensor.detach().cpu().contiguous()
        self._waiting_bytes += tensor.numel() * tensor.element_size()
        if self._waiting_bytes >= self._shard_bytes:
            self._write()

    def _write(self) -> None:
        from safetensors.torch import save_file

        # transformers refuses files that don't say this.
        save_file(self._waiting, self._folder / f"shard-{len(self._shards)}", metadata={"format": "pt"})
        self._shards.append(list(self._waiting))
        self._total_bytes += self._waiting_bytes
        self._waiting, self._waiting_bytes = {}, 0

    def _finish(self) -> None:
        if self._waiting:
            self._write()
        count = len(self._shards)
        if count == 1:
            (self._folder / "shard-0").rename(self._folder / "model.safetensors")
            return
        where: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            name = f"model-{number + 1:05}-of-{count:05}.safetensors"
            (self._folder / f"shard-{number}").rename(self._folder / name)
            where |= dict.fromkeys(names, name)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": where}
        (self._folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")
