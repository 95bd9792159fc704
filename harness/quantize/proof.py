"""The read-back proof: the weights of a quantized model are measured, its label is not believed.

For each linear layer inside the transformer blocks: the dense weights that will
be scored equal what codes and scales say, bit by bit; no group holds more than
``2**bits`` distinct values; codes fit their width. Bytes are those of the packed
codes and of scales and zero points; nothing is taken from a label.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from harness.errors import QuantizationError
from harness.quantize.formats.bit_stream import pack_chunks
from harness.quantize.formats.codes import ReadBack
from harness.quantize.models.dense import block_linears, source_weights
from harness.records import Checkpoint, Proof, QuantizerSpec

# Weights sorted at once when levels are counted.
_CHUNK = 1 << 22


@dataclass(slots=True)
class _Tally:
    """Sums over the layers proved so far."""

    weights: int = 0
    size_bytes: int = 0
    max_levels: int = 0
    max_abs_error: float = 0.0
    abs_error: float = 0.0
    error_square: float = 0.0
    weight_square: float = 0.0
    # Whether every layer is centred on 0; None where no layer has a zero point to look at.
    symmetric: bool | None = None
    # Whether every layer has zero points, and is centred on 0 all the same.
    zeros_in_the_middle: bool = True
    group_sizes: Counter[int | None] = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)


def most_levels(weight: Any, *, group_size: int | None, flat: bool = False, group_index: Any = None) -> int:
    """Returns the largest number of distinct values in one group of ``weight``.

    Args:
        weight: Floating tensor [out_features, in_features].
        group_size: Weights in a group; None means one row.
        flat: Whether groups run through the row-major matrix.
        group_index: Group of each column where groups are no neighbours; each
            but the last has ``group_size`` columns.
    """
    import torch

    if group_index is not None:
        weight = weight[:, group_index.argsort(stable=True)]
    lines = weight.reshape(1, -1) if flat else weight
    width = lines.shape[1]
    size = width if group_size is None else min(group_size, width)
    missing = -width % size
    if missing:
        lines = torch.cat([lines, lines[:, -1:].expand(-1, missing)], dim=1)
    groups = lines.reshape(-1, size)
    most = 0
    for part in groups.split(max(1, _CHUNK // size)):
        ordered = part.sort(dim=1).values
        most = max(most, int((ordered[:, 1:] != ordered[:, :-1]).sum(dim=1).max()) + 1)
    return most


def _refuse(spec: QuantizerSpec, what: str) -> QuantizationError:
    blame = "of the submitted files" if spec.backend == "submitted" else "of the backend, not of the model"
    return QuantizationError(f"{spec.name} doesn't hold its proof: {what}; this is a fault {blame}.")


def _check_coverage(spec: QuantizerSpec, linears: Mapping[str, Any], layers: Collection[str]) -> None:
    missing = [name for name in linears if name not in layers]
    if missing:
        raise _refuse(spec, f"{len(missing)} of {len(linears)} linear layers stay dense, the first is {missing[0]}")
    extra = [name for name in layers if name not in linears]
    if extra:
        raise _refuse(
            spec, f"it quantized {', '.join(extra)} outside the blocks, which stays in 16 bit for every backend"
        )


def _check_overhead(spec: QuantizerSpec, name: str, layer: ReadBack) -> None:
    """Refuses scales that are not one per group: enough of them could hold any weights."""
    rows, width = layer.codes.shape
    if layer.flat:
        groups = -(-rows * width // (layer.group_size or width))
    else:
        groups = rows * -(-width // (layer.group_size or width))
    for what, values in (("scales", layer.scales), ("zero points", layer.zeros), ("shifts", layer.shifts)):
        if values is not None and values.numel() != groups:
            raise _refuse(spec, f"{name} came with {values.numel()} {what} for {groups} groups")
    if layer.group_index is not None:
        sizes = layer.group_index.bincount()
        if layer.flat or len(sizes) > groups // rows or int(sizes.max()) > (layer.group_size or width):
            raise _refuse(spec, f"the column order of {name} makes other groups than those of {layer.group_size}")
    if layer.book is not None and layer.book.numel() > 2**layer.bits:
        raise _refuse(spec, f"the code book of {name} has {layer.book.numel()} levels, more than {2**layer.bits}")


def check_codes(spec: QuantizerSpec, name: str, dense: Any, layer: ReadBack) -> None:
    """Checks that a layer's dense weights are what its codes say, bit by bit.

    Raises:
        QuantizationError: They are not.
    """
    import torch

    told = layer.dequantize().to(dense.dtype)
    if not torch.equal(told, dense):
        differing = int((told != dense).sum())
        raise _refuse(
            spec,
            f"in {name} {differing} of {dense.numel()} dense weights differ from what the codes say, "
            f"by up to {float((told - dense).abs().max()):.3g}",
        )


def _check_layer(spec: QuantizerSpec, name: str, dense: Any, layer: ReadBack, any_group: bool, any_bits: bool) -> int:
    """Returns the largest number of levels in a group of one layer that holds its proof."""
    import torch

    if (layer.bits != spec.bits and not any_bits) or (layer.group_size != spec.group_size and not any_group):
        raise _refuse(
            spec,
            f"{name} has codes of {layer.bits} bits in groups of {layer.group_size or 'one row'}, and the preset says "
            f"{spec.bits} bits in groups of {spec.group_size or 'one row'}",
        )
    if layer.codes.shape != dense.shape or layer.codes.dtype != torch.uint8:
        raise _refuse(spec, f"{name} came back as {layer.codes.dtype} codes of shape {tuple(layer.codes.shape)}")
    _check_overhead(spec, name, layer)
    if not bool(dense.isfinite().all()):
        raise _refuse(spec, f"{name} holds NaN or infinity after dequantizing")
    check_codes(spec, name, dense, layer)
    if spec.symmetric and layer.symmetric is False:
        raise _refuse(spec, f"0 is not the middle code of every group of {name}, and the preset says symmetric")
    levels = most_levels(dense, group_size=layer.group_size, flat=layer.flat, group_index=layer.group_index)
    if levels > 2**layer.bits:
        raise _refuse(
            spec,
            f"a group of {name} holds {levels} distinct values, more than the {2**layer.bits} of {layer.bits} bits",
        )
    return levels


def _dense_modules(model: Any, linears: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what keeps its 16-bit weights, block numbers replaced by ``*``."""
    kept = (
        name.removesuffix(".weight")
        for name, _ in model.named_parameters()
        if name.removesuffix(".weight") not in linears
    )
    return tuple(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in kept))


def _own_groups(spec: QuantizerSpec, found: Mapping[int | None, int]) -> tuple[str, ...]:
    """Returns a remark on layers whose group is another one than the preset's."""
    other = [
        f"{count} of {sum(found.values())} layers are quantized {f'in groups of {size}' if size else 'per row'}"
        for size, count in sorted(found.items(), key=lambda item: item[0] or 0)
        if size != spec.group_size
    ]
    why = "as submitted" if spec.backend == "submitted" else "the library chooses the group by the layer's width"
    return (f"{'; '.join(other)}: {why}.",) if other else ()


@contextmanager
def _originals(
    checkpoint: Checkpoint | None, reference: Mapping[str, Any] | None
) -> Iterator[Mapping[str, Any] | None]:
    """Opens the weights that errors are measured against; None where there are none."""
    if reference is not None or checkpoint is None:
        yield reference
    else:
        with source_weights(checkpoint) as source:
            yield source


class Prover:
    """The proof of one model, gathered layer by layer in model order, so that no more than one need be in memory.

    Args:
        spec: What the backend was asked for.
        originals: Weights that errors are measured against, by module name;
            None where there are none.
        any_group: As ``prove``.
        any_bits: As ``prove``.
    """

    def __init__(
        self, spec: QuantizerSpec, originals: Mapping[str, Any] | None, *, any_group: bool = False,
        any_bits: bool = False,
    ) -> None:  # fmt: skip
        self._spec, self._originals = spec, originals
        self._any_group, self._any_bits = any_group, any_bits
        self._digest, self._tally = hashlib.sha256(), _Tally()

    def add(self, name: str, dense: Any, layer: ReadBack) -> None:
        """Proves one layer.

        Args:
            name: Its module's name.
            dense: The weight that will be scored, on the CPU.
            layer: What the backend handed over.

        Raises:
            QuantizationError: It does not hold.
        """
        tally = self._tally
        levels = _check_layer(self._spec, name, dense, layer, self._any_group, self._any_bits)
        tally.max_levels = max(tally.max_levels, levels)
        self._digest.update(f"{name}\n".encode())
        tally.size_bytes += layer.overhead_bytes
        for chunk in pack_chunks(layer.codes, layer.bits):
            self._digest.update(chunk)
            tally.size_bytes += len(chunk)
        tally.weights += dense.numel()
        tally.group_sizes[layer.group_size] += 1
        tally.names.append(name)
        centred = layer.symmetric
        tally.zeros_in_the_middle = tally.zeros_in_the_middle and layer.zeros is not None and bool(centred)
        if centred is not None:
            tally.symmetric = centred and tally.symmetric is not False
        if self._originals is None:
            return
        original = self._originals[name].float()
        if original.shape != dense.shape:
            raise QuantizationError(
                f"{name} is {tuple(original.shape)} in the 16-bit model and {tuple(dense.shape)} here: they are "
                "not of one model, so name the right `base_model` or none."
            )
        error = dense.float() - original
        tally.abs_error += float(error.double().abs().sum())
        tally.max_abs_error = max(tally.max_abs_error, float(error.abs().max()))
        tally.error_square += float(error.double().square().sum())
        tally.weight_square += float(original.double().square().sum())

    def proof(self, model: Any, *, remarks: tuple[str, ...] = ()) -> Proof:
        """Returns the proof once every linear layer of ``model`` was added; its weights are not looked at.

        Raises:
            QuantizationError: Others were, or not all. Or grids are centred on
                0 throughout where the preset says asymmetric: a group may be
                by chance, all groups of a model are not.
        """
        tally, known = self._tally, self._originals is not None
        linears = block_linears(model)
        _check_coverage(self._spec, linears, tally.names)
        if self._spec.symmetric is False and tally.zeros_in_the_middle:
            raise _refuse(self._spec, "0 has the middle code in every group, and the preset says asymmetric")
        relative = (tally.error_square / tally.weight_square) ** 0.5 if tally.weight_square else 0.0
        return Proof(
            linear_layers=len(linears),
            quantized_layers=len(tally.names),
            parameter_share=tally.weights / sum(linear.weight.numel() for linear in linears.values()),
            max_levels=tally.max_levels,
            group_size=self._spec.group_size,
            bits_per_weight=8 * tally.size_bytes / tally.weights,
            size_bytes=tally.size_bytes,
            max_abs_error=tally.max_abs_error if known else None,
            relative_error=relative if known else None,
            codes_sha256=self._digest.hexdigest(),
            dense_modules=_dense_modules(model, linears),
            remarks=(*remarks, *_own_groups(self._spec, tally.group_sizes)),
            mean_abs_error=tally.abs_error / tally.weights if known else None,
            symmetric=tally.symmetric,
        )


def prove(
    model: Any,
    checkpoint: Checkpoint | None,
    spec: QuantizerSpec,
    layers: Mapping[str, ReadBack],
    *,
    remarks: tuple[str, ...] = (),
    any_group: bool = False,
    any_bits: bool = False,
    reference: Mapping[str, Any] | None = None,
) -> Proof:
    """Returns what reading the dequantized dense ``model`` back has shown.

    Args:
        model: The dense model that will be scored.
        checkpoint: The 16-bit weights it was quantized from, read again from
            their files; None where nobody knows them, and then no error is
            measured.
        spec: What the backend was asked for.
        layers: What it handed over, by module name.
        remarks: What a reader must know about the backend.
        any_group: Whether the library chooses each layer's group by itself;
            what it chose is then told in a remark instead of refused.
        any_bits: Whether each layer may have a width of its own, which the
            caller tells in a remark.
        reference: Weights to measure the error against, by module name, where
            the backend rescales the checkpoint's own before it rounds them.

    Raises:
        QuantizationError: It does not hold: layers left out, weights that are
            not what the codes say, too many levels, too many bytes.
    """
    linears = block_linears(model)
    _check_coverage(spec, linears, layers)
    with _originals(checkpoint, reference) as originals:
        prover = Prover(spec, originals, any_group=any_group, any_bits=any_bits)
        for name, linear in linears.items():
            prover.add(name, linear.weight.detach().cpu(), layers[name])
    return prover.proof(model, remarks=remarks)
