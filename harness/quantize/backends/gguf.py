"""GGUF's plain types, made with gguf-py: Q8_0, Q5_1, Q5_0, Q4_1 and Q4_0, blocks of 32.

The blocks that the library writes are taken apart by our own arithmetic; its
own dequantization is what the proof holds against it.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.errors import QuantizationError
from harness.quantize.formats.ggml_blocks import BLOCK, TYPES, read_blocks
from harness.quantize.libraries import install_line, missing_reason, version_of
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.quantize.formats.codes import ReadBack

DENSE_ENDS = (
    "llama.cpp's own files also quantize the embeddings and the output head, which stay in 16 bit here as they do for "
    "every backend."
)
"""What a reader of any GGUF cell must know."""


def _spec(kind: str) -> QuantizerSpec:
    bits, symmetric = TYPES[kind]
    return QuantizerSpec(
        name=f"gguf-{kind.lower()}",
        backend="gguf",
        bits=bits,
        group_size=BLOCK,
        symmetric=symmetric,
        label=f"GGUF {kind}, block {BLOCK}, {'symmetric' if symmetric else 'asymmetric'}",
        options={"type": kind},
    )


_PRESETS = tuple(_spec(kind) for kind in TYPES)


class Gguf:
    """GGUF's types of one scale per block, through gguf-py."""

    backend = "gguf"
    deterministic = True
    install = install_line("quantizers")
    impossible = MappingProxyType(
        dict.fromkeys((3, 2), "gguf-py reads K-quants and can't write them: see ggml")
        | {1: "gguf-py writes no type of 1 bit"}
    )

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns the five types that gguf-py can write."""
        return _PRESETS

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the preset of that name: a GGUF type has nothing to choose."""
        return next((spec for spec in _PRESETS if spec.name == name), None)

    def library_version(self) -> str | None:
        """Returns gguf-py's version, None where it is not installed."""
        return version_of("gguf")

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why it can't run: a library that is not installed."""
        return missing_reason(spec.name, ("gguf",))

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint as gguf-py quantizes it, dequantized.

        Raises:
            QuantizationError: A layer's width is no multiple of 32, or the
                proof fails.
        """
        from harness.quantize.runners.layerwise import quantize_layers

        return quantize_layers(checkpoint, spec, self, device=device, remarks=(DENSE_ENDS,))

    def quantize_layer(self, spec: QuantizerSpec, name: str, depth: int, weight: Any) -> tuple[ReadBack, Any]:
        """Returns one layer as gguf-py quantizes it, and dequantized by gguf-py.

        Raises:
            QuantizationError: Its width is no multiple of 32.
        """
        import torch
        from gguf import GGMLQuantizationType, quants

        rows, width = weight.shape
        if width % BLOCK:
            raise QuantizationError(
                f"{spec.name} can't hold {name}: its rows of {width} weights are no multiple of GGUF's block of "
                f"{BLOCK}; use a backend whose groups may be shorter, such as rtn."
            )
        kind = spec.options["type"]
        ggml = GGMLQuantizationType[kind]
        blocks = quants.quantize(weight.float().cpu().numpy(), ggml)
        return read_blocks(blocks, kind, (rows, width)), torch.from_numpy(quants.dequantize(blocks, ggml))


BACKEND = Gguf()
