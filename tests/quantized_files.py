"""Quantized checkpoints as other programs leave them, packed here from the formats' definitions."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file

GROUP = 32
GPTQ_CONFIG = {
    "quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False,
    "checkpoint_format": "gptq", "pack_dtype": "int32", "lm_head": False, "meta": {"quantizer": ["by hand:1"]},
}  # fmt: skip

_KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def is_block_linear(name: str) -> bool:
    return "_proj.weight" in name


def rounded(weight: torch.Tensor, bits: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a symmetric grid; scales are powers of two, so that 16 bit hold every level."""
    groups = weight.float().reshape(weight.shape[0], -1, GROUP)
    scales = 2.0 ** torch.ceil(torch.log2(groups.abs().amax(2) / (2 ** (bits - 1) - 1)).clamp(min=-14))
    middle = 2 ** (bits - 1)
    codes = (torch.round(groups / scales[..., None]) + middle).clamp(0, 2 * middle - 1)
    return codes.reshape(weight.shape).to(torch.uint8), scales


def levels(codes: torch.Tensor, scales: torch.Tensor, bits: int = 4) -> torch.Tensor:
    return (codes.float() - 2 ** (bits - 1)) * scales.repeat_interleave(GROUP, 1)


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """One stream of bits down each column, lowest first: codes [n, columns] to int32 [words, columns]."""
    single = (codes.long()[:, None] >> torch.arange(bits)[:, None]) & 1
    stream = single.reshape(-1, codes.shape[1])
    stream = torch.cat([stream, stream.new_zeros(-len(stream) % 32, codes.shape[1])])
    packed = (stream.reshape(-1, 32, codes.shape[1]) << torch.arange(32)[:, None]).sum(1)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def gptq_layer(codes: torch.Tensor, scales: torch.Tensor) -> dict[str, torch.Tensor]:
    zeros = torch.full(scales.shape, 7, dtype=torch.uint8)
    return {
        "qweight": words(codes.T, 4),
        "qzeros": words(zeros, 4).T.contiguous(),
        "scales": scales.T.contiguous().half(),
        "g_idx": (torch.arange(codes.shape[1]) // GROUP).to(torch.int32),
    }


def _config(source: Path, folder: Path, quantization: dict[str, Any] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    told = {} if quantization is None else {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config | told), encoding="utf-8")


def write_gptq(source: Path, folder: Path, **changes: Any) -> Path:
    """A GPTQ checkpoint of a dense one, rounded to nearest."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if is_block_linear(name):
            layer = gptq_layer(*rounded(weight))
            tensors |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in layer.items()}
        else:
            tensors[name] = weight
    _config(source, folder, GPTQ_CONFIG | changes)
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_dense(source: Path, folder: Path, bits: int = 4, *, everything: bool = False) -> Path:
    """The dense model that means the same as ``write_gptq`` (or, with ``everything``, as ``write_gguf``)."""
    tensors = load_file(source / "model.safetensors")
    for name, weight in tensors.items():
        if is_block_linear(name) or (everything and weight.dim() == 2):
            tensors[name] = levels(*rounded(weight, bits), bits).to(weight.dtype)
    _config(source, folder, None)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for path in source.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def blocks(codes: torch.Tensor, scales: torch.Tensor, bits: int) -> numpy.ndarray:
    """Q4_0 or Q8_0 blocks [rows, bytes]: a float16 scale, then the codes of 32 weights."""
    rows = codes.shape[0]
    head = scales.half().numpy().reshape(-1, 1).view(numpy.uint8)
    each = codes.numpy().reshape(-1, GROUP)
    if bits == 8:
        body = (each.astype(numpy.int16) - 128).astype(numpy.int8).view(numpy.uint8)
    else:
        body = each[:, :16] | each[:, 16:] << 4
    return numpy.concatenate([head, body], axis=1).reshape(rows, -1)


def interleaved(rows: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Rows of a query or key projection in llama.cpp's order: row i of the lower half, then row i of the upper."""
    count = rows.shape[0] // heads
    order = [head * count + side * (count // 2) + place
             for head in range(heads) for place in range(count // 2) for side in (0, 1)]  # fmt: skip
    return rows[order]


def gguf_name(name: str) -> str:
    parts = name.split(".")
    if parts[1] == "layers":
        return f"blk.{parts[2]}.{_NAMES['.'.join(parts[3:-1])]}.{parts[-1]}"
    return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
        ".".join(parts[:-1])
    ] + f".{parts[-1]}"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_bytes(
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata: dict[str, Any], *, count: int | None = None
) -> bytes:
    """A whole GGUF file of version 3; shapes are rows first, metadata text, numbers or lists of text."""
    keys = b""
    for key, value in metadata.items():
        if isinstance(value, str):
            keys += text(key) + struct.pack("<I", 8) + text(value)
        elif isinstance(value, list):
            keys += text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        else:
            keys += text(key) + struct.pack("<II", 4, value)
    told, data = b"", b""
    for name, (kind, shape, content) in tensors.items():
        told += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), _KINDS[kind], len(data))
        data += content + bytes(-len(content) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors) if count is None else count, len(metadata)) + keys + told
    return head + bytes(-len(head) % 32) + data


def write_gguf(
    source: Path, folder: Path, kind: str = "Q4_0", pick: Callable[[str], str | None] = lambda name: None, **more: Any
) -> Path:
    """A GGUF file of a dense Llama as llama.cpp writes it, embeddings and head quantized too.

    ``pick`` may choose a K-quant type for a tensor, which then holds arbitrary blocks.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    source_of_bytes = numpy.random.default_rng(3)
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        shape = tuple(weight.shape)
        if weight.dim() == 1:
            tensors[gguf_name(name)] = ("F32", shape, weight.float().numpy().tobytes())
            continue
        other = pick(name)
        bits = int(kind[1])
        raw = blocks(*rounded(weight, bits), bits) if other is None else random_blocks(other, shape, source_of_bytes)
        projection = name.split(".")[-2]
        if projection in heads:
            raw = interleaved(raw, heads[projection])
        tensors[gguf_name(name)] = (other or kind, shape, raw.tobytes())
    metadata = {
        "general.architecture": "llama", "llama.attention.head_count": heads["q_proj"],
        "llama.attention.head_count_kv": heads["k_proj"], "tokenizer.ggml.tokens": ["a", "b"],
    }  # fmt: skip
    _config(source, folder, None)
    (folder / "model.gguf").write_bytes(gguf_bytes(tensors, metadata | more))
    return folder


_HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
_SIZES = {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}


def random_blocks(kind: str, shape: tuple[int, ...], source: numpy.random.Generator) -> numpy.ndarray:
    """Any bytes are K-quant codes and factors; only the float16 scales are chosen, so that they are finite."""
    size = _SIZES[kind]
    count = shape[0] * shape[1] // 256
    raw = source.integers(0, 256, (count, size), dtype=numpy.uint8)
    for place in _HALVES[kind]:
        raw[:, place : place + 2] = source.uniform(-0.01, 0.01, (count, 1)).astype(numpy.float16).view(numpy.uint8)
    return raw.reshape(shape[0], -1)


def write_bnb(source: Path, folder: Path, **options: Any) -> Path:
    """A bitsandbytes checkpoint as transformers saves it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, device_map="cpu", quantization_config=BitsAndBytesConfig(**options)
    )
    model.save_pretrained(folder)
    return folder


def bnb_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a saved bitsandbytes checkpoint as the library itself dequantizes them."""
    import bitsandbytes
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.bfloat16)
    for name, layer in model.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            yield name, bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        elif isinstance(layer, bitsandbytes.nn.Linear8bitLt):
            yield name, layer.weight.CB.float() * (layer.weight.SCB.float() / 127)[:, None]
