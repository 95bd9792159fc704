"""Measures the memory of `quench survival` on two synthetic checkpoints whose blocks are Llama-2-7B's."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.working_memory import high_water
from harness import quantize
from harness.quantize.survival.layer_by_layer import stream
from harness.records import Checkpoint

BLOCK = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}


def make_pair(folder: Path, blocks: int, shape: dict[str, int]) -> tuple[Checkpoint, Checkpoint]:
    """Writes a random target and its update, one file a block, and returns (updated, target)."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=64, num_hidden_layers=blocks, tie_word_embeddings=False, dtype="bfloat16", **shape)
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in LlamaForCausalLM(config).named_parameters()}
    made = []
    for name, move in (("updated", 1e-4), ("target", 0.0)):
        place = folder / name
        place.mkdir()
        config.save_pretrained(place)
        index: dict[str, str] = {}
        for block in range(-1, blocks):
            own = [key for key in shapes if (f".layers.{block}." in key if block >= 0 else ".layers." not in key)]
            tensors: dict[str, Any] = {}
            drawn = torch.Generator().manual_seed(block + 1)
            for key in own:
                weight = 0.02 * torch.randn(shapes[key], generator=drawn)
                tensors[key] = (weight + move * weight.sign()).bfloat16()
            save_file(tensors, place / f"model-{block + 1}.safetensors", metadata={"format": "pt"})
            index |= dict.fromkeys(own, f"model-{block + 1}.safetensors")
        (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        made.append(
            Checkpoint(path=str(place), tokenizer_path=str(place), dtype="bfloat16", sha256=name,
                       merged_from_adapter=False)
        )  # fmt: skip
    return made[0], made[1]


def measure(blocks: int, names: list[str], shape: dict[str, int]) -> dict[str, float]:
    """Returns the pair's bytes, the peak of resident memory and the seconds, both without writing the pair."""
    with tempfile.TemporaryDirectory() as folder:
        updated, target = make_pair(Path(folder), blocks, shape)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
        started = time.perf_counter()
        found = stream(updated, target, [quantize.resolve(name) for name in names])
        seconds = time.perf_counter() - started
    peak = high_water()
    ratio = found[names[0]][0].survival_ratio
    return {"pair_bytes": size, "peak_bytes": peak, "seconds": seconds, "ratio": ratio if ratio is not None else -1.0}


def main() -> None:
    """Prints one JSON document; run it in a process of its own, as memory is the process's peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=3, help="3 blocks make a pair of 2.4 GB")
    parser.add_argument("--quantizers", default="rtn-4bit-g128")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.blocks, arguments.quantizers.split(","), BLOCK)))


if __name__ == "__main__":
    main()
