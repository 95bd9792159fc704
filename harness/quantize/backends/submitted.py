"""Checkpoints that are submitted quantized: read back, proved and scored under no other quantizer."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness import model_files
from harness.errors import QuantizationError, one_line
from harness.quantize.libraries import install_line, missing_reason
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

if TYPE_CHECKING:
    from harness.quantize.formats.checkpoint import PackedCheckpoint
    from harness.quantize.formats.codes import ReadBack

_UNKNOWN = "The 16-bit weights it was made from are not known (`base_model` would name them), so no error is measured."
_ACTIVATIONS = "As shipped it also rounds activations at run time; this cell measures its weights alone."
_AWQ = "AWQ folds scales into other layers: the error is measured after taking row and column scales out."


class Submitted:
    """A quantized checkpoint as somebody else made it: nothing is quantized here."""

    backend = "submitted"
    deterministic = True
    install = install_line("quantizers")
    impossible: Mapping[int, str] = MappingProxyType({})

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns none: the specification comes from the submitted file, see ``submitted_spec.spec_of``."""
        return ()

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns None: it can't be asked for by name, since it belongs to one submission."""
        return None

    def library_version(self) -> str | None:
        """Returns None: what made the codes is not known, and reading them needs no library's arithmetic."""
        return None

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why a file can't be read here: GGUF files need gguf-py."""
        return missing_reason(spec.name, ("gguf",)) if spec.options.get("method") == "gguf" else None

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the submitted checkpoint with its layers dequantized, and proved.

        No codes are handed on: the target was never quantized the same way, so
        there is nothing to compare them with.

        Raises:
            QuantizationError: The files don't fit together, are not what their
                config says, or leave layers of the blocks in 16 bit.
        """
        from harness.quantize.formats import checkpoint as packed_checkpoint
        from harness.quantize.models.dense import block_linears
        from harness.quantize.proof import prove

        started = time.perf_counter()
        packed = packed_checkpoint.read(Path(checkpoint.path))
        model = dense_model(checkpoint, packed, device=device)
        seconds = time.perf_counter() - started
        inside = {name: packed.layers[name] for name in block_linears(model) if name in packed.layers}
        method = spec.options.get("method")
        with _originals(checkpoint, spec, inside) as reference:
            proof = prove(
                model,
                None,
                spec,
                inside,
                remarks=tuple(_remarks(checkpoint, spec, packed, inside)),
                any_group=method in ("gguf", "bitsandbytes"),
                any_bits=method == "gguf",
                reference=reference,
            )
        return QuantizedModel(model=model, spec=spec, proof=proof, layers={}, quantize_seconds=seconds)


def dense_model(checkpoint: Checkpoint, packed: PackedCheckpoint, *, device: str) -> Any:
    """Returns the model of a packed checkpoint with float weights: float32 on a CPU, the checkpoint's dtype elsewhere.

    Raises:
        QuantizationError: Weights are missing, too many, of another shape, or
            not finite.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        # transformers would look for the library that wrote the codes.
        del config.quantization_config
    dtype = torch.float32 if device == "cpu" else getattr(torch, checkpoint.dtype)
    state = dict(packed.others)
    for name, layer in packed.layers.items():
        state[f"{name}.weight"] = layer.dequantize().to(dtype)
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise QuantizationError(f"{name} of the submitted checkpoint holds no finite numbers: export it anew.")
    try:
        model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
    except (RuntimeError, ValueError) as error:
        said = one_line(error)[:200]
        raise QuantizationError(f"The submitted weights and config.json don't belong together ({said}).") from error
    # AutoGPTQ and AutoAWQ write a bias of zeros where there is none.
    surplus = [key for key in report["unexpected_keys"] if not (key.endswith(".bias") and not bool(state[key].any()))]
    misshapen = [name for name, *_ in report["mismatched_keys"]]
    model_files.refuse(Path(checkpoint.path), missing=report["missing_keys"], surplus=surplus, misshapen=misshapen)
    return model.to(device).eval()


@contextmanager
def _originals(
    checkpoint: Checkpoint, spec: QuantizerSpec, layers: Mapping[str, ReadBack]
) -> Iterator[Mapping[str, Any] | None]:
    """Opens the 16-bit weights that the checkpoint was made from; None where nobody has named them."""
    from harness.quantize.backends.awq import Rescaled
    from harness.quantize.models.dense import source_weights

    if checkpoint.unquantized_path is None:
        yield None
        return
    with source_weights(dataclasses.replace(checkpoint, path=checkpoint.unquantized_path)) as source:
        yield Rescaled(source, layers) if _is_awq(spec) else source


def _is_awq(spec: QuantizerSpec) -> bool:
    return spec.name.startswith("submitted-awq-")


def _remarks(
    checkpoint: Checkpoint, spec: QuantizerSpec, packed: PackedCheckpoint, inside: Mapping[str, ReadBack]
) -> Iterator[str]:
    """Yields what a reader of the proof must know."""
    from harness.quantize.backends.bnb import INT8_REMARK
    from harness.quantize.formats.compressed_tensors import CompressedFormat

    if checkpoint.unquantized_path is None:
        yield _UNKNOWN
    elif _is_awq(spec):
        yield _AWQ
    outside = sorted(set(packed.layers) - set(inside))
    if outside:
        yield f"Also quantized, outside the blocks: {', '.join(outside)}."
    widths = Counter(layer.bits for layer in inside.values())
    other = [f"{count} in {bits} bits" for bits, count in sorted(widths.items()) if bits != spec.bits]
    if other:
        yield f"Of {len(inside)} layers {', '.join(other)}; the others in {spec.bits}."
    method = spec.options.get("method")
    if method == "bitsandbytes" and spec.bits == 8:
        yield INT8_REMARK
    if method == "compressed-tensors" and CompressedFormat.from_config(packed.config).rounds_activations:
        yield _ACTIVATIONS


BACKEND = Submitted()
