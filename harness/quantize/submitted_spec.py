"""The specification of a checkpoint that is submitted quantized, read from its own config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import QuantizationError
from harness.quantize.formats import gguf as packed_gguf
from harness.quantize.formats.awq import BITS as AWQ_BITS
from harness.quantize.formats.awq import AwqFormat, is_awq
from harness.quantize.formats.bitsandbytes import BnbFormat
from harness.quantize.formats.compressed_tensors import CompressedFormat
from harness.quantize.formats.ggml_blocks import TYPES as PLAIN_TYPES
from harness.quantize.formats.gptq import GptqFormat
from harness.records import QuantizerSpec

_BNB_BLOCK = 64

# Types that have a minimum besides their scale.
_SHIFTED_K = frozenset({"Q2_K", "Q4_K", "Q5_K"})


def spec_of(config: Mapping[str, Any]) -> QuantizerSpec:
    """Returns the specification that a checkpoint's own ``quantization_config`` describes.

    Nothing of it is believed: the proof holds bits, groups and symmetry against
    the codes.

    Args:
        config: The config; for a GGUF file ``{"quant_method": "gguf",
            "types": {GGML type: weights of that type in the blocks}}``. For
            bitsandbytes ``block_size`` may say what the file's scales show.

    Raises:
        QuantizationError: A method or a variant that no reader here knows.
    """
    method = str(config.get("quant_method", "")).lower()
    if method == "gguf":
        return _gguf(config["types"])
    if method == "bitsandbytes":
        bnb = BnbFormat.from_config(config)
        name = bnb.book or "int8"
        block = int(config.get("block_size") or _BNB_BLOCK)
        label = f"{name.upper()}, block {block}" if bnb.book else "LLM.int8"
        return QuantizerSpec(
            name=f"submitted-bnb-{name}", backend="submitted", bits=bnb.bits,
            group_size=block if bnb.book else None, symmetric=None if bnb.book else True,
            label=f"as submitted: bitsandbytes {label}{'' if bnb.book else ', per row, symmetric'}",
            options={"method": method},
        )  # fmt: skip
    if method == "compressed-tensors":
        ct = CompressedFormat.from_config(config)
        return _uniform("compressed-tensors", method, ct.bits, ct.group_size, ct.symmetric)
    if is_awq(config):
        awq = AwqFormat.from_config(config)
        return _uniform("AWQ", method, AWQ_BITS, awq.group_size, awq.symmetric)
    gptq = GptqFormat.from_config(config)
    ending = ", act-order" if gptq.reordered else ""
    shown = "GPTQ" if method == "gptq" else "AutoRound"
    return _uniform(shown, method, gptq.bits, gptq.group_size, gptq.symmetric, ending)


def _uniform(shown: str, method: str, bits: int, group: int | None, symmetric: bool, ending: str = "") -> QuantizerSpec:
    parts = [shown.lower(), f"{bits}bit", f"g{group}" if group else "row", *(["act"] if ending else [])]
    return QuantizerSpec(
        name="-".join(["submitted", *parts, *(["sym"] if symmetric else [])]),
        backend="submitted",
        bits=bits,
        group_size=group,
        symmetric=symmetric,
        label=f"as submitted: {shown} {bits}-bit, {f'group {group}' if group else 'per row'}, "
        f"{'symmetric' if symmetric else 'asymmetric'}{ending}",
        options={"method": method},
    )


def _gguf(types: Mapping[str, int]) -> QuantizerSpec:
    """Returns the specification of a GGUF file; its width is that of most weights."""
    unread = sorted(set(types) - set(packed_gguf.BITS))
    if unread or not types:
        raise QuantizationError(
            f"A GGUF file whose layers are of type {', '.join(unread) or 'none'} can't be scored: every matrix inside "
            f"the blocks must be one of {', '.join(packed_gguf.BITS)}."
        )
    kinds = sorted(types, key=lambda kind: (-types[kind], kind))
    weights: dict[int, int] = {}
    for kind, count in types.items():
        weights[packed_gguf.BITS[kind]] = weights.get(packed_gguf.BITS[kind], 0) + count
    symmetric = {kind not in _SHIFTED_K and (kind not in PLAIN_TYPES or PLAIN_TYPES[kind][1]) for kind in kinds}
    blocks = " and ".join(map(str, dict.fromkeys(packed_gguf.GROUPS[kind] for kind in kinds)))
    told = {True: "symmetric", False: "asymmetric"}
    shown = " and ".join(told[each] for each in sorted(symmetric, reverse=True))
    return QuantizerSpec(
        name=f"submitted-gguf-{'-'.join(kind.lower() for kind in kinds)}",
        backend="submitted",
        bits=max(weights, key=lambda bits: (weights[bits], bits)),
        group_size=packed_gguf.GROUPS[kinds[0]],
        symmetric=symmetric.pop() if len(symmetric) == 1 else None,
        label=f"as submitted: GGUF {' + '.join(kinds)}, block {blocks}, {shown}",
        options={"method": "gguf", "types": kinds},
    )
