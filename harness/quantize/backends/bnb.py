"""bitsandbytes, loaded the way models ship with it: LLM.int8, NF4, FP4, and NF4 with quantized scales."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness import model_files
from harness.quantize.libraries import install_line, version_of
from harness.records import Checkpoint, QuantizedLayer, QuantizedModel, QuantizerSpec

if TYPE_CHECKING:
    from harness.quantize.formats.codes import ReadBack

_BLOCK = 64

INT8_REMARK = (
    "LLM.int8 also rounds activations to 8 bit at run time, but for outlier columns, which it multiplies in 16 bit; "
    "this cell measures the int8 weights alone."
)


def _spec(
    name: str, bits: int, group_size: int | None, symmetric: bool | None, label: str, double_quant: bool = False
) -> QuantizerSpec:
    return QuantizerSpec(
        name=name, backend="bnb", bits=bits, group_size=group_size, symmetric=symmetric, label=label,
        options={"double_quant": double_quant} if bits == 4 else {"threshold": 6.0},
    )  # fmt: skip


_PRESETS = (
    _spec("bnb-int8", 8, None, True, "bitsandbytes LLM.int8, per row, symmetric"),
    _spec("bnb-nf4", 4, _BLOCK, None, "bitsandbytes NF4, block 64"),
    _spec("bnb-fp4", 4, _BLOCK, None, "bitsandbytes FP4, block 64"),
    _spec("bnb-nf4-dq", 4, _BLOCK, None, "bitsandbytes NF4, block 64, scales in 8 bit", double_quant=True),
)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what bitsandbytes says about casts, once per layer and call."""
    logger = logging.getLogger("bitsandbytes")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="bitsandbytes")
            warnings.filterwarnings("ignore", message=".*MatMul8bitLt.*")
            yield
    finally:
        logger.setLevel(before)


def _kind(spec: QuantizerSpec) -> str:
    """Returns the library's name of a 4-bit type."""
    return spec.name.removeprefix("bnb-").removesuffix("-dq")


def _load(checkpoint: Checkpoint, spec: QuantizerSpec, device: str) -> Any:
    """Returns the model as transformers loads it with bitsandbytes layers."""
    import torch
    from transformers import BitsAndBytesConfig

    dtype = getattr(torch, checkpoint.dtype)
    if spec.bits == 8:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=spec.options["threshold"])
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=_kind(spec),
            bnb_4bit_use_double_quant=spec.options["double_quant"],
            bnb_4bit_compute_dtype=dtype,
        )
    return model_files.load(Path(checkpoint.path), dtype=dtype, device_map={"": device}, quantization_config=config)


def _read_int8(weight: Any) -> ReadBack:
    """Reads a row-wise int8 weight out of the library's parameter."""
    from harness.quantize.formats.bitsandbytes import read_int8

    return read_int8(weight.CB.detach().cpu(), weight.SCB.detach().cpu())


def _read_4bit(weight: Any) -> ReadBack:
    """Reads a 4-bit weight out of the library's parameter, nested scales undone."""
    import torch

    from harness.quantize.formats.bitsandbytes import nested_scales, read_4bit

    state, inner = weight.quant_state, weight.quant_state.state2
    scales, scale_bytes = state.absmax.detach().cpu(), None
    if state.nested:
        scales, scale_bytes = nested_scales(
            scales.view(-1), inner.absmax.detach().cpu().view(-1), inner.code.detach().cpu(), block=inner.blocksize,
            offset=state.offset.detach().cpu(),
        )  # fmt: skip
    return read_4bit(
        weight.data.detach().cpu().view(torch.uint8), scales, state.code.detach().cpu(), shape=tuple(state.shape),
        block=state.blocksize, dtype=str(state.dtype).removeprefix("torch."), scale_bytes=scale_bytes,
    )  # fmt: skip


def _read_back(weight: Any) -> tuple[ReadBack, Any]:
    """Returns what is read out of the library's parameter, and the weight as the library itself dequantizes it.

    4-bit weights are handed over as the one row that their blocks run through:
    with AVX-512, bitsandbytes 0.50's CPU kernel starts a new block in each row,
    which is wrong where 64 does not divide the rows.
    """
    import bitsandbytes

    if isinstance(weight, bitsandbytes.nn.Int8Params):
        return _read_int8(weight), weight.CB.float() * (weight.SCB.float() / 127)[:, None]
    state = copy(weight.quant_state)
    state.shape = (1, weight.quant_state.shape.numel())
    dense = bitsandbytes.functional.dequantize_4bit(weight.data, state)
    return _read_4bit(weight), dense.view(weight.quant_state.shape)


class BitsAndBytes:
    """Weight quantization of bitsandbytes through transformers' own loading."""

    backend = "bnb"
    deterministic = True
    install = install_line("score")
    impossible = MappingProxyType(dict.fromkeys((3, 2, 1), "bitsandbytes has types of 8 and 4 bits"))

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns int8, NF4 and FP4 with the library's defaults, and NF4 with its scales quantized."""
        return _PRESETS

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the preset of that name: there are no others."""
        return next((spec for spec in _PRESETS if spec.name == name), None)

    def library_version(self) -> str | None:
        """Returns bitsandbytes' version, None where it is not installed."""
        return version_of("bitsandbytes")

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why it can't run: a library that is not installed."""
        missing = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
        if missing:
            return f"{spec.name} needs {' and '.join(missing)}, not installed here: run {self.install}."
        return None

    def native(self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str) -> Any:
        """Returns the model as transformers runs it with bitsandbytes' layers."""
        with _quiet():
            return _load(checkpoint, spec, device).eval()

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint as bitsandbytes quantizes it, its weights dequantized into a dense model.

        Raises:
            QuantizationError: The proof fails.
        """
        import bitsandbytes

        from harness.quantize.models.dense import block_linears, load_dense, replace_weight
        from harness.quantize.models.streamed import must_stream
        from harness.quantize.proof import prove
        from harness.quantize.runners.layerwise import one_by_one, stream_layers

        remarks = (INT8_REMARK,) if spec.bits == 8 else ()
        if must_stream(checkpoint, device=device, quantized=True):
            return stream_layers(
                checkpoint,
                spec,
                lambda model: one_by_one(checkpoint, spec, self, model, device),
                device=device,
                remarks=remarks,
            )
        started = time.perf_counter()
        layers: dict[str, ReadBack] = {}
        with _quiet():
            quantized = _load(checkpoint, spec, device)
            seconds = time.perf_counter() - started
            model = load_dense(checkpoint, device=device)
            linears = block_linears(model)
            for name, layer in quantized.named_modules():
                if not isinstance(layer, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt):
                    continue
                layers[name], weight = _read_back(layer.weight)
                if name in linears:
                    replace_weight(linears[name], weight)
            del quantized
        return QuantizedModel(
            model=model,
            spec=spec,
            proof=prove(model, checkpoint, spec, layers, remarks=remarks),
            layers={name: QuantizedLayer(codes=layer.codes, step=layer.step) for name, layer in layers.items()},
            quantize_seconds=seconds,
        )

    def quantize_layer(self, spec: QuantizerSpec, name: str, depth: int, weight: Any) -> tuple[ReadBack, Any]:
        """Returns one layer alone as bitsandbytes quantizes it when a model is loaded, and dequantized by it."""
        import bitsandbytes

        with _quiet():
            if spec.bits == 8:
                made = bitsandbytes.nn.Int8Params(weight.cpu(), requires_grad=False)
            else:
                made = bitsandbytes.nn.Params4bit(
                    weight, requires_grad=False, quant_type=_kind(spec),
                    compress_statistics=spec.options["double_quant"],
                )  # fmt: skip
            return _read_back(made.to(weight.device))


BACKEND = BitsAndBytes()
