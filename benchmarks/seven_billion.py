"""Runs a random model of Llama-2-7B's shape through the pipeline, stage by stage, and prints a table.

Each stage is a process of its own, so that its peak of memory is its own.

The adapter's base and the target are one checkpoint of random weights: what
is measured is time and memory, which the values of weights don't change.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from harness import memory, quantize, shards
from harness.quantize.survival.layer_by_layer import stream
from harness.records import Checkpoint, Submission
from harness.submit.checkpoint import prepare
from harness.submit.scan import folder as folder_scan

SHAPE = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
QUANTIZER = "rtn-4bit-g128"
STAGES = ("intake", "merge", "rtn-4bit", "reference", "survival")
RANK = 16


def _submissions(folder: Path) -> dict[str, Submission]:
    common: dict[str, Any] = dict.fromkeys(
        ("target", "retrain", "base_model", "base_revision", "revision", "weights_sha256")
    ) | {"corpus": "mini", "method": "random"}
    target = Submission(
        **common | {"name": "target", "title": "target", "kind": "full_model", "role": "target",
                    "folder": str(folder / "target"), "weights": str(folder / "target" / "weights")}
    )  # fmt: skip
    entry = Submission(
        **common | {"name": "entry", "title": "entry", "kind": "lora_adapter", "role": "entry", "target": "target",
                    "base_model": "target", "folder": str(folder / "entry"),
                    "weights": str(folder / "entry" / "weights")}
    )  # fmt: skip
    return {one.name: one for one in (target, entry)}


def make(folder: Path, layers: int, shape: dict[str, int], vocabulary: int) -> None:
    """Writes target, adapter and tokenizer below an empty folder, one tensor at a time."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=vocabulary, num_hidden_layers=layers, tie_word_embeddings=False, dtype="bfloat16",
        max_position_embeddings=4096, **shape,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        sizes = {name: tuple(value.shape) for name, value in LlamaForCausalLM(config).named_parameters()}
    target, entry = folder / "target" / "weights", folder / "entry" / "weights"
    target.mkdir(parents=True)
    entry.mkdir(parents=True)
    drawn = torch.Generator().manual_seed(0)
    config.save_pretrained(target)
    with shards.ShardWriter(target) as out:
        for name, size in sizes.items():
            # bfloat16 at once: a normal number of 32 bits takes twice the time and is rounded anyway.
            out.put(name, torch.empty(size, dtype=torch.bfloat16).normal_(1.0 if len(size) == 1 else 0.0, 0.02,
                                                                          generator=drawn))  # fmt: skip
    words = {"<s>": 0, **{f"w{number}": number for number in range(1, vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(target)
    _write_adapter(entry, sizes, drawn)


def _write_adapter(folder: Path, sizes: dict[str, tuple[int, ...]], drawn: Any) -> None:
    import torch
    from safetensors.torch import save_file

    modules = ["q_proj", "v_proj", "down_proj"]
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none",
                "target_modules": modules}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    factors: dict[str, Any] = {}
    for name, size in sizes.items():
        module = name.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] in modules:
            for factor, form in (("lora_A", (RANK, size[1])), ("lora_B", (size[0], RANK))):
                factors[f"base_model.model.{module}.{factor}.weight"] = 0.02 * torch.randn(form, generator=drawn)
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _prepared(folder: Path, name: str) -> Checkpoint:
    known = _submissions(folder)
    return prepare.prepare(known[name], known, cache=folder / "cache")


def _peak() -> int:
    from benchmarks.working_memory import high_water

    return high_water()


def _quantize_and_score(folder: Path, quantizer: str, words: int) -> dict[str, Any]:
    """Quantizes with the proof, then scores two texts as PrivLeak does: the log-probability of each token."""
    from harness.score.model.language_model import QuenchLM

    spec, checkpoint = quantize.resolve(quantizer), _prepared(folder, "entry")
    started = time.perf_counter()
    made = quantize.backend_of(spec).quantize(checkpoint, spec, device="cpu")
    told: dict[str, Any] = {
        "streamed": made.streamed, "quantize_seconds": time.perf_counter() - started, "quantize_peak_bytes": _peak(),
        "rounding_seconds": made.quantize_seconds,
    }  # fmt: skip
    if made.proof is not None:
        told |= {
            "bits_per_weight": made.proof.bits_per_weight, "levels": made.proof.max_levels,
            "layers": made.proof.quantized_layers,
        }  # fmt: skip
    print(json.dumps(told), file=sys.stderr, flush=True)
    started = time.perf_counter()
    lm = QuenchLM(made.model, prepare.load_tokenizer(checkpoint))
    texts = [" ".join(f"w{1 + (31 * text + 7 * word) % 90}" for word in range(words)) for text in range(2)]
    logprobs = [logprob for one in lm.texts.score_texts(texts) for logprob in one.logprobs]
    return told | {
        "tokens": len(logprobs), "mean_logprob": sum(logprobs) / len(logprobs),
        "score_seconds": time.perf_counter() - started,
    }  # fmt: skip


def run_stage(stage: str, folder: Path, words: int) -> dict[str, Any]:
    """Runs one stage in this process and returns its seconds, the process's peak of memory, and what it found."""
    known = _submissions(folder)

    def survival() -> dict[str, Any]:
        rows = stream(_prepared(folder, "entry"), _prepared(folder, "target"), [quantize.resolve(QUANTIZER)])
        return {"survival_ratio": rows[QUANTIZER][0].survival_ratio}

    work: dict[str, Callable[[], Any]] = {
        "intake": lambda: folder_scan.scan(known["entry"], known),
        "merge": lambda: _prepared(folder, "entry") and None,
        "rtn-4bit": lambda: _quantize_and_score(folder, QUANTIZER, words),
        "reference": lambda: _quantize_and_score(folder, "reference", words),
        "survival": survival,
    }
    # Loading libraries is no stage's work.
    for library in ("torch", "peft", "transformers", "lm_eval.models.huggingface"):
        import_module(library)
    started = time.perf_counter()
    told = work[stage]() or {}
    return {"stage": stage, "seconds": time.perf_counter() - started, "peak_bytes": _peak(), **told}


def main() -> None:
    """Prints one line of JSON for each stage, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for weights and cache; 35 GB for 32 layers")
    parser.add_argument("--layers", type=int, default=32, help="transformer blocks; 32 are 6.7 billion weights")
    parser.add_argument("--words", type=int, default=512, help="tokens of each of the two texts")
    parser.add_argument("--hidden", type=int, help="a small width, to try the script")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--stream", choices=["auto", "always", "never"], default="auto")
    parser.add_argument("--within", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.within:
        with memory.streaming(arguments.stream):
            print(json.dumps(run_stage(arguments.within, arguments.folder, arguments.words)))
        return
    if not (arguments.folder / "target").is_dir():
        width = arguments.hidden
        shape = SHAPE if width is None else SHAPE | {
            "hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "num_key_value_heads": 4
        }  # fmt: skip
        make(arguments.folder, arguments.layers, shape, 32_000 if width is None else 128)
    parameters = shards.count_numbers(arguments.folder / "target" / "weights")
    print(f"{parameters / 1e9:.2f} billion parameters, {2 * parameters / 2**30:.1f} GB in bfloat16")
    rows = []
    for stage in arguments.stages.split(","):
        command = [sys.executable, "-m", "benchmarks.seven_billion", str(arguments.folder), "--within", stage,
                   "--words", str(arguments.words), "--stream", arguments.stream]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        line = done.stdout.splitlines()[-1]
        print(line, flush=True)
        rows.append(json.loads(line))
    print("| stage | seconds | peak, GB |\n|---|---|---|")
    for row in rows:
        parts = [(row["stage"], row["seconds"], row["peak_bytes"])]
        if "score_seconds" in row:
            parts = [(f"{row['stage']}: quantize", row["quantize_seconds"], row["quantize_peak_bytes"]),
                     (f"{row['stage']}: score", row["score_seconds"], row["peak_bytes"])]  # fmt: skip
        for name, seconds, peak in parts:
            print(f"| {name} | {seconds:.0f} | {peak / 2**30:.1f} |")


if __name__ == "__main__":
    main()
