"""Runs a backend that calibrates: windows of tokens for its library, packed layers from it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError, QuantizationError, first_line
from harness.paths import cache_dir
from harness.quantize import calibration as texts
from harness.quantize.formats.checkpoint import PackedCheckpoint, fill, read
from harness.quantize.formats.codes import ReadBack
from harness.records import Checkpoint, QuantizedLayer, QuantizedModel, QuantizerSpec
from harness.tokenizer import load_tokenizer

QuantizeTo = Callable[[list[list[int]], Path], None]
"""Takes windows of token ids and an empty folder; has a library quantize the checkpoint and save it there."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Made:
    """A checkpoint that a library has quantized, put into a dense model.

    Attributes:
        model: Dense transformers model with every tensor of the packed
            checkpoint, its layers dequantized.
        layers: Those layers as they were read back.
        remark: What it was calibrated on.
        seconds: Time inside the library, loading included.
    """

    model: Any
    layers: dict[str, ReadBack]
    remark: str
    seconds: float

    def finish(self, spec: QuantizerSpec, proof: Any) -> QuantizedModel:
        """Returns the proved model with its codes."""
        return QuantizedModel(
            model=self.model,
            spec=spec,
            proof=proof,
            layers={name: QuantizedLayer(codes=layer.codes, step=layer.step) for name, layer in self.layers.items()},
            quantize_seconds=self.seconds,
        )


def windows_for(
    checkpoint: Checkpoint, spec: QuantizerSpec, calibration: Sequence[str]
) -> tuple[texts.Recipe, list[list[int]]]:
    """Returns a spec's recipe and its windows of token ids for this checkpoint.

    Raises:
        QuantizationError: Texts are missing, are other ones than the spec's
            digest says, or the checkpoint has no tokenizer.
    """
    from transformers import AutoConfig

    recipe = texts.check(spec, calibration)
    config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    try:
        tokenizer = load_tokenizer(checkpoint.tokenizer_path, vocabulary=config.get_text_config().vocab_size)
    except InputError as error:
        raise QuantizationError(f"{spec.name} calibrates on text: {error}") from error
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return recipe, texts.windows(calibration, recipe, tokenizer, longest=longest)


def make(
    checkpoint: Checkpoint,
    spec: QuantizerSpec,
    calibration: Sequence[str],
    quantize_to: QuantizeTo,
    *,
    device: str,
    library: str,
    row_multiple: int,
    width_multiple: int,
) -> Made:
    """Returns the checkpoint as a calibrating library quantizes it, read back from what it saves.

    Args:
        checkpoint: The 16-bit model.
        spec: What is asked for.
        calibration: The texts that ``calibration.prepare`` chose.
        quantize_to: The library's own work.
        device: Where the dense model is put.
        library: Its name, for messages.
        row_multiple: What a layer's rows must be a multiple of.
        width_multiple: The same for the weights in a row.

    Raises:
        QuantizationError: A layer of another shape, no calibration, a failure
            of the library, or a checkpoint that can't be read back.
    """
    from harness.quantize.models.dense import block_linears, load_dense

    model = load_dense(checkpoint, device=device)
    linears = block_linears(model)
    for name, linear in linears.items():
        rows, width = linear.weight.shape
        if rows % row_multiple or width % width_multiple:
            raise QuantizationError(
                f"{spec.name} can't hold {name}: {library} wants a multiple of {row_multiple} rows and of "
                f"{width_multiple} weights in a row here, and it has {rows} rows of {width}; choose another backend or "
                "group size."
            )
    recipe, windows = windows_for(checkpoint, spec, calibration)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="quantizing-") as place:
        try:
            quantize_to(windows, Path(place))
        except QuantizationError:
            raise
        except Exception as error:
            said = first_line(error)
            raise QuantizationError(f"{spec.name} failed inside {library}, which says: {said}") from error
        packed = _saved_in(Path(place), spec, library)
    seconds = time.perf_counter() - started
    fill(model, packed)
    told = f"{recipe.label[0].upper()}{recipe.label[1:]}: {len(windows)} windows, {sum(map(len, windows))} tokens."
    # Files list tensors by name; what is not among the linears stays in, for the proof to refuse.
    order = [
        *(name for name in linears if name in packed.layers),
        *(name for name in packed.layers if name not in linears),
    ]
    return Made(model=model, layers={name: packed.layers[name] for name in order}, remark=told, seconds=seconds)


def _saved_in(place: Path, spec: QuantizerSpec, library: str) -> PackedCheckpoint:
    """Returns the one checkpoint below ``place``: some libraries make a folder of their own there."""
    folders = [path.parent for path in place.rglob("config.json")]
    if len(folders) != 1:
        raise QuantizationError(
            f"{spec.name} left {len(folders)} checkpoints instead of one behind: this version of {library} saves in "
            "another way than the one that is pinned in constraints.txt."
        )
    return read(folders[0])
