"""How fast is scoring? Quench against stock lm-eval and the reference's loop, in one process and one run.

On muse-mini's shipped target, and on a real model and data where both are
given (SmolLM2 and MUSE NEWS, as ``make real-check`` prepares them)::

    make bench
    make bench DATA_DIR=... MODEL=build/real/submissions/smollm2-target/weights

Every contender scores the same documents, as many of each of the four metrics
(and of each split). Contenders take turns; what is printed are medians over
the rounds, their ratios, and the largest difference between scores of the same
document. Stock lm-eval runs at the batch size that was fastest for it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import working_memory
from benchmarks.contenders import METRICS, Documents, Quench, ReferenceLoop, StockLmEval, agreement, documents
from harness.paths import content_dir


def main() -> None:
    """Runs the benchmark and prints its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a model with its tokenizer (default: only muse-mini)")
    parser.add_argument("--data-dir", type=Path, help="MUSE NEWS in its local form, for --model")
    parser.add_argument("--documents", type=int, default=4, help="documents of each metric for --model")
    parser.add_argument("--mini-documents", type=int, default=32, help="documents of each metric on muse-mini")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16, 32], help="tried for lm-eval")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found = {}
    mini = content_dir("submissions") / "mini-target-plain" / "weights"
    sizes = tuple(asked.batch_sizes)
    found["muse-mini"] = compare(mini, "mini", None, asked.mini_documents, asked.rounds, sizes)
    if asked.model:
        if not asked.data_dir:
            parser.error("--model needs --data-dir, a folder with MUSE NEWS in its local form")
        found[asked.model.parent.name] = compare(
            asked.model, "news", asked.data_dir, asked.documents, asked.rounds, sizes
        )
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def compare(
    folder: Path, corpus: str, data_dir: Path | None, count: int, rounds: int, sizes: tuple[int, ...]
) -> dict[str, Any]:
    """Measures one model on one corpus; prints the table and returns its figures."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = {metric: documents(corpus, metric, tokenizer, data_dir, count) for metric in METRICS}
    contenders: dict[str, Callable[[str], Any]] = {
        "quench": lambda metric: Quench(model, tokenizer, data_dir),
        "reference loop": lambda metric: ReferenceLoop(model, tokenizer),
    }
    best = {metric: fastest_batch_size(model, tokenizer, metric, asked[metric], sizes) for metric in METRICS}
    contenders["stock lm-eval"] = lambda metric: StockLmEval(model, tokenizer, batch_size=best[metric])
    seconds: dict[str, dict[str, list[float]]] = {name: {m: [] for m in METRICS} for name in contenders}
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    for _ in range(rounds):
        for metric in METRICS:
            for name, make in contenders.items():
                contender = make(metric)
                start = time.perf_counter()
                scores[name][metric] = contender.run(metric, asked[metric])
                seconds[name][metric].append(time.perf_counter() - start)
    medians = {name: {m: statistics.median(values) for m, values in by.items()} for name, by in seconds.items()}
    differences = {
        metric: {
            name: agreement(scores["quench"][metric], scores[name][metric])
            for name in ("reference loop", "stock lm-eval")
            # lm-eval's rolling log-likelihood is a sum that counts BOS; it stands for the work, not for the score.
            if (metric, name) != ("privleak", "stock lm-eval")
        }
        for metric in METRICS
    }
    memory = working_memory.of_scoring(folder, corpus, data_dir, count)
    show(f"{folder.parent.name}, {count} documents of each metric", medians, differences, best, memory)
    return {"seconds": medians, "differences": differences, "batch": best, "memory": memory, "documents": count}


def fastest_batch_size(model: Any, tokenizer: Any, metric: str, asked: Documents, sizes: tuple[int, ...]) -> int:
    """Returns the batch size at which stock lm-eval is fastest for a metric."""
    timed = {}
    for size in sizes:
        contender = StockLmEval(model, tokenizer, batch_size=size)
        start = time.perf_counter()
        contender.run(metric, asked)
        timed[size] = time.perf_counter() - start
        if size >= max(len(asked.prompts), 2 * len(asked.splits[0][1]) if asked.splits else 0):
            break
    return min(timed, key=lambda size: timed[size])


def show(
    title: str, medians: dict[str, dict[str, float]], differences: dict[str, dict[str, float]], best: dict[str, int],
    memory: dict[str, float],
) -> None:  # fmt: skip
    """Prints one model's table."""
    table = Table(title=title)
    names = ("metric", "quench", "reference loop", "ratio", "largest diff.", "stock lm-eval", "ratio", "largest diff.")
    for column in names:
        table.add_column(column, justify="left" if column == "metric" else "right")

    def row(name: str, ours: float, loop: float, stock: float, batch: str, gap: dict[str, float]) -> None:
        table.add_row(
            name, f"{ours:.2f} s", f"{loop:.2f} s", f"{loop / ours:.2f}x", _gap(gap.get("reference loop")),
            f"{stock:.2f} s {batch}", f"{stock / ours:.2f}x", _gap(gap.get("stock lm-eval")),
        )  # fmt: skip

    for metric in METRICS:
        row(metric, medians["quench"][metric], medians["reference loop"][metric], medians["stock lm-eval"][metric],
            f"(batch {best[metric]})", differences[metric])  # fmt: skip
    row("all four", *(sum(medians[name].values()) for name in ("quench", "reference loop", "stock lm-eval")), "", {})
    console = Console(width=130)
    console.print(table)
    weights, loaded, peak = (memory[key] / 2**20 for key in ("weights", "loaded", "peak"))
    console.print(
        f"Memory: {weights:.1f} MB of weights; the process held {loaded:.0f} MB with them and at most {peak:.0f} MB"
        f" while scoring (+{100 * memory['process']:.0f}%); the longest text, {memory['tokens']:.0f} tokens, took"
        f" tensors of {100 * memory['tensors']:.0f}% of the weights."
    )


def _gap(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


if __name__ == "__main__":
    main()
