"""K-quants, made with llama.cpp's own library where it is installed: Q6_K, Q5_K, Q4_K, Q3_K and Q2_K.

gguf-py reads these types and can't write them. ``libggml-base`` can: one
function takes float32 rows and returns super-blocks. Those are taken apart by
our own arithmetic, and gguf-py's dequantization is what the proof holds
against it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.errors import QuantizationError
from harness.quantize.backends.gguf import DENSE_ENDS
from harness.quantize.formats.ggml_k_blocks import SUPER_BLOCK, TYPES, read_blocks
from harness.quantize.libraries import missing_reason
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.quantize.formats.codes import ReadBack

LIBRARY_VARIABLE = "QUENCH_GGML"
"""Environment variable that may hold the path of ``libggml-base``."""

_FILES = ("libggml-base.so", "libggml-base.so.0", "libggml-base.dylib")

_REMARKS = (
    DENSE_ENDS,
    "One type throughout, as `llama-quantize --pure` makes; its mixtures such as Q4_K_M give some layers another type.",
)


def _spec(kind: str) -> QuantizerSpec:
    bits, group, _ = TYPES[kind]
    return QuantizerSpec(
        name=f"gguf-{kind.lower()}",
        backend="ggml",
        bits=bits,
        group_size=group,
        symmetric=None,
        label=f"GGUF {kind}, groups of {group} in super-blocks of {SUPER_BLOCK}",
        options={"type": kind},
    )


_PRESETS = tuple(_spec(kind) for kind in sorted(TYPES, reverse=True))


def _places() -> Iterator[str]:
    """Yields where the library may lie: the variable, where the system looks, and beside ``llama-quantize``."""
    told = os.environ.get(LIBRARY_VARIABLE)
    if told:
        yield told
        return
    yield from _FILES
    program = shutil.which("llama-quantize")
    if program:
        folder = Path(program).resolve().parent
        for place in (folder, folder.parent / "lib"):
            yield from (str(place / name) for name in _FILES)


def load_library() -> Any | None:
    """Returns llama.cpp's ``libggml-base`` as a ctypes library; None where it is not installed."""
    for place in _places():
        try:
            library = ctypes.CDLL(place)
            library.ggml_quantize_chunk.restype = ctypes.c_size_t
        except (OSError, AttributeError):
            continue
        library.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_void_p,
        ]  # fmt: skip
        return library
    return None


class Ggml:
    """K-quants through llama.cpp's library."""

    backend = "ggml"
    deterministic = True
    install = "install llama.cpp"
    impossible = MappingProxyType({8: "Q8_K is for sums alone; Q8_0 is gguf's", 1: "no K-quant has 1 bit"})

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns the five K-quants."""
        return _PRESETS

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the preset of that name: a GGUF type has nothing to choose."""
        return next((spec for spec in _PRESETS if spec.name == name), None)

    def library_version(self) -> str | None:
        """Returns ggml's version and commit, None where llama.cpp is not installed."""
        library = load_library()
        if library is None:
            return None
        told = []
        for name in ("ggml_version", "ggml_commit"):
            function = getattr(library, name, None)
            if function is not None:
                function.restype = ctypes.c_char_p
                told.append(function().decode())
        return "+".join(told) or "unnumbered"

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why it can't run: gguf-py or llama.cpp is not installed."""
        reason = missing_reason(spec.name, ("gguf",))
        if reason is None and load_library() is None:
            return (
                f"{spec.name} needs llama.cpp's libggml-base, not found here: install llama.cpp or set "
                f"{LIBRARY_VARIABLE} to the library's path."
            )
        return reason

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint as llama.cpp quantizes it, without an importance matrix, dequantized.

        Raises:
            QuantizationError: A layer's width is no multiple of 256, the
                library is gone, or the proof fails.

        Source: ``ggml_quantize_chunk`` in ggml's ``ggml.h``.
        Differs from the reference: ``llama-quantize`` gives layers of other
            widths another type; here they are refused, since the label would
            be wrong.
        """
        from harness.quantize.runners.layerwise import quantize_layers

        return quantize_layers(checkpoint, spec, self, device=device, remarks=_REMARKS)

    def quantize_layer(self, spec: QuantizerSpec, name: str, depth: int, weight: Any) -> tuple[ReadBack, Any]:
        """Returns one layer as llama.cpp quantizes it, and dequantized by gguf-py.

        Raises:
            QuantizationError: Its width is no multiple of 256, or the library
                is gone.
        """
        import torch
        from gguf import GGMLQuantizationType, quants

        library = load_library()
        if library is None:
            raise QuantizationError(str(self.unavailable_reason(spec, str(weight.device))))
        rows, width = weight.shape
        if width % SUPER_BLOCK:
            raise QuantizationError(
                f"{spec.name} can't hold {name}: its rows of {width} weights are no multiple of the super-block of "
                f"{SUPER_BLOCK}; choose another quantizer, such as gguf-q4_0."
            )
        kind = spec.options["type"]
        ggml = GGMLQuantizationType[kind]
        blocks = _quantized(library, int(ggml.value), kind, weight)
        return read_blocks(blocks, kind, (rows, width)), torch.from_numpy(quants.dequantize(blocks, ggml))


def _quantized(library: Any, number: int, kind: str, weight: Any) -> Any:
    """Returns a weight as numpy.uint8 [rows, bytes per row]."""
    import numpy

    rows, width = weight.shape
    source = numpy.ascontiguousarray(weight.float().cpu().numpy())
    blocks = numpy.empty((rows, width // SUPER_BLOCK * TYPES[kind][2]), dtype=numpy.uint8)
    written = library.ggml_quantize_chunk(number, source.ctypes.data, blocks.ctypes.data, 0, rows, width, None)
    if written != blocks.nbytes:
        raise QuantizationError(
            f"libggml-base wrote {written} bytes instead of {blocks.nbytes} for {kind}: another version is needed."
        )
    return blocks


BACKEND = Ggml()
