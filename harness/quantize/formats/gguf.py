"""A submitted GGUF file, taken apart: llama.cpp's names and row order put back into transformers' own.

Blocks are read by our own arithmetic (``ggml_blocks``, ``ggml_k_blocks``); gguf-py
only finds them in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import QuantizationError, first_line
from harness.quantize.formats import ggml_blocks, ggml_k_blocks
from harness.quantize.formats.codes import ReadBack

BITS = {
    **{kind: bits for kind, (bits, _) in ggml_blocks.TYPES.items()},
    **{k: v[0] for k, v in ggml_k_blocks.TYPES.items()},
}
"""Bits per code of every type that is read."""

GROUPS = {
    **dict.fromkeys(ggml_blocks.TYPES, ggml_blocks.BLOCK),
    **{kind: group for kind, (_, group, _) in ggml_k_blocks.TYPES.items()},
}
"""Weights that share a scale, by type."""

_DENSE = ("F32", "F16", "BF16")

# What llama.cpp calls the architecture of each model_type; both names it gives to Llama-like ones reorder rows.
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

_OUTSIDE = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
_INSIDE = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip

# Derived from the config by transformers.
_IGNORED = frozenset({"rope_freqs.weight"})


def module_name(name: str) -> tuple[str, str] | None:
    """Returns the module and the parameter that a tensor of a GGUF file is in transformers, None where it is none.

    Source: gguf-py's ``tensor_mapping.py``.
    """
    told = re.fullmatch(r"(?:blk\.(\d{1,6})\.)?(\w+)\.(weight|bias)", name)
    if told is None:
        return None
    block, part, kind = told.groups()
    module = (_OUTSIDE if block is None else _INSIDE).get(part)
    if module is None:
        return None
    return (module if block is None else f"model.layers.{int(block)}.{module}"), kind


def in_transformers_order(rows: Any, heads: int) -> Any:
    """Returns the rows of a query or key projection in transformers' order.

    llama.cpp rotates neighbouring pairs and transformers the two halves of a
    head, so its converter interleaves each head's rows.

    Args:
        rows: numpy array [out_features, ...].
        heads: Heads that the rows belong to.

    Source: ``LlamaModel.permute`` in llama.cpp's ``convert_hf_to_gguf.py``.
    """
    count, rest = rows.shape[0], rows.shape[1:]
    if count % (2 * heads):
        raise QuantizationError(f"{count} rows of queries or keys can't be shared out to {heads} heads of even width.")
    return rows.reshape(heads, count // heads // 2, 2, *rest).swapaxes(1, 2).reshape(count, *rest)


def read_layer(raw: Any, kind: str, shape: tuple[int, int]) -> ReadBack:
    """Returns one quantized tensor as codes, scales and shifts.

    Args:
        raw: numpy.uint8 array of its blocks.
        kind: GGML type.
        shape: Rows and columns.

    Raises:
        QuantizationError: The type has no reader, or the bytes don't fit the
            shape.
    """
    if kind in ggml_k_blocks.TYPES:
        return ggml_k_blocks.read_blocks(raw, kind, shape)
    if kind not in ggml_blocks.TYPES:
        raise QuantizationError(f"GGUF tensors of type {kind} can't be read: {', '.join(BITS)} are.")
    return ggml_blocks.read_blocks(raw, kind, shape)


def read(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, ReadBack], dict[str, Any]]:
    """Returns a file's quantized layers by module name, and all other tensors by parameter name.

    Args:
        path: The file.
        config: The model's ``config.json``.

    Raises:
        QuantizationError: gguf-py can't read the file, it is of another
            architecture than the config says, or it holds a tensor that no
            Llama-like model has.
    """
    reader = _open(path)
    heads = _heads(reader, path, config)
    layers: dict[str, ReadBack] = {}
    others: dict[str, Any] = {}
    for tensor in reader.tensors:
        if tensor.name in _IGNORED:
            continue
        told = module_name(tensor.name)
        if told is None:
            raise QuantizationError(
                f"{path.name} holds {tensor.name[:80]!r}, which no Llama-, Mistral- or Qwen-like model has: only those "
                "are read."
            )
        module, kind = told
        shape = tuple(int(side) for side in reversed(tensor.shape))
        raw = _bytes(tensor.data).reshape(shape[0], -1)
        projection = module.rpartition(".")[2]
        if projection in heads:
            raw = in_transformers_order(raw, heads[projection])
        if tensor.tensor_type.name in _DENSE:
            others[f"{module}.{kind}"] = _dense(raw, tensor.tensor_type.name, shape)
        elif len(shape) == 2 and kind == "weight":
            layers[module] = read_layer(raw, tensor.tensor_type.name, (shape[0], shape[1]))
        else:
            raise QuantizationError(f"{path.name} holds {tensor.name} in {tensor.tensor_type.name}: only matrices may.")
    return layers, others


def _open(path: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, KeyError, IndexError, TypeError, OSError, OverflowError) as error:
        said = first_line(error)[:200]
        raise QuantizationError(f"{path.name} can't be read as a GGUF file, gguf-py says: {said}") from error


def _heads(reader: Any, path: Path, config: Mapping[str, Any]) -> dict[str, int]:
    """Returns the heads of each projection whose rows llama.cpp reorders; the file must be of the config's shape."""
    told = str(config.get("model_type"))
    found = _field(reader, "general.architecture")
    if told not in _ARCHITECTURES or found != _ARCHITECTURES[told]:
        raise QuantizationError(
            f"{path.name} is of architecture {str(found)[:40]!r} and config.json of {told[:40]!r}: GGUF files of "
            f"{', '.join(_ARCHITECTURES)} are read, with the config.json of the same model."
        )
    queries = config["num_attention_heads"]
    own = {"head_count": queries, "head_count_kv": config.get("num_key_value_heads") or queries}
    for key, expected in own.items():
        value = _field(reader, f"{found}.attention.{key}")
        if value is not None and value != expected:
            raise QuantizationError(f"{path.name} has {key} {value!r}, and config.json says {expected}.")
    if found != "llama":
        return {}
    return {"q_proj": own["head_count"], "k_proj": own["head_count_kv"]}


def _field(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _bytes(data: Any) -> Any:
    import numpy

    return numpy.ascontiguousarray(data).view(numpy.uint8)


def _dense(raw: Any, kind: str, shape: tuple[int, ...]) -> Any:
    import torch

    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    return torch.frombuffer(bytearray(raw.tobytes()), dtype=dtype).reshape(shape)
