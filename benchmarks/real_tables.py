"""Writes what the store of ``make real-experiment`` says into docs/survival.md: scores, losses, verdicts, survival.

Usage: ``python -m benchmarks.real_tables --store build/smol/smol.duckdb``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks import boards, marked_pages
from benchmarks.real_experiment import ENTRIES, QUANTIZERS, RETRAIN, TARGET
from harness.publish import formatting
from harness.publish.board import Board, QuantizerResult
from harness.publish.statistics.quantities import stored_value
from harness.quantize.survival.measure import summarize

START, END = "<!-- smol: made by benchmarks/real_tables.py -->", "<!-- /smol -->"

KNOWN: Mapping[str, Mapping[str, float]] = {
    "smol-full-bf16": {
        "rtn-8bit-g64": 1.00, "bnb-nf4": 0.29, "bnb-fp4": 0.20, "rtn-4bit-g64": 0.10, "rtn-4bit-row": 0.04,
        "rtn-3bit-g64": 0.01,
    },
    "smol-lora": {
        "rtn-8bit-g64": 1.00, "bnb-nf4": 1.00, "bnb-fp4": 0.98, "rtn-4bit-g64": 1.00, "rtn-4bit-row": 1.00,
        "rtn-3bit-g64": 1.00,
    },
}  # fmt: skip
"""Survival ratios of one earlier run of this experiment, by a script of its own: one seed, before Quench."""


def results(board: Board) -> dict[str, Mapping[str, QuantizerResult]]:
    """Returns the results of entries and controls by quantizer."""
    return {row.submission.name: row.by_quantizer for row in (*board.controls, *board.rows)}


def survival_ratio(result: QuantizerResult) -> float | None:
    """Returns the survival ratio over all layers, None where there is none."""
    cell = next(iter(result.cells.values()), None)
    pooled = summarize(cell.survival) if cell else None
    return pooled.survival_ratio if pooled else None


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(board: Board, seeds: Sequence[int]) -> str:
    """Returns the four tables of one store: scores, losses beside the target's, verdicts, survival."""
    found = results(board)
    names = [name for name in QUANTIZERS.split(",") if any(name in known for known in found.values())]
    ways = [entry.name for entry in ENTRIES]

    def both(way: str, name: str, say: Callable[[QuantizerResult], str]) -> str:
        told = [found.get(f"{way}-s{seed}", {}).get(name) for seed in seeds]
        return "; ".join("-" if one is None else say(one) for one in told)

    heads = ["quantizer", *(way.removeprefix("smol-") for way in ways)]
    scores = [
        [name, *(_scores(found.get(control, {}).get(name)) for control in (TARGET, RETRAIN)),
         *(both(way, name, _scores) for way in ways)]
        for name in names
    ]  # fmt: skip
    above = [
        [name, *(both(way, name, partial(_above, target=found[TARGET].get(name))) for way in ways)] for name in names
    ]  # fmt: skip
    verdicts = [[name, *(both(way, name, _verdict) for way in ways)] for name in names if name != "reference"]
    lives = [[name, *(both(way, name, _ratio) for way in ways), _known(name)] for name in names if name != "reference"]
    return "\n\n".join((
        "VerbMem x 100, mean loss of the true continuation in nats, and utility x 100 (seed 0; seed 1):",
        table([heads[0], "target", "retrain", *heads[1:]], scores),
        "That loss above the target's under the same quantizer, in nats (seed 0; seed 1):",
        table(heads, above),
        "Recovery of the remaining share with its 95% interval, and the verdict (seed 0; seed 1):",
        table(heads, verdicts),
        "Survival ratio (seed 0; seed 1):",
        table([*heads, "one earlier run, full-bf16; lora"], lives),
    ))  # fmt: skip


def _scores(result: QuantizerResult | None) -> str:
    if result is None:
        return "-"
    return " / ".join((_times_100(result, "verbmem_f"), _two_digits(_loss(result)), _times_100(result, "knowmem_r")))


def _loss(result: QuantizerResult) -> float | None:
    cell = result.cells.get("verbmem_f")
    return stored_value(cell, "reference_nll") if cell else None


def loss_above(result: QuantizerResult, target: QuantizerResult | None) -> float | None:
    """Returns how much larger the mean loss on true continuations is than the target's, in nats."""
    ours, known = _loss(result), _loss(target) if target else None
    return None if ours is None or known is None else ours - known


def _above(result: QuantizerResult, target: QuantizerResult | None) -> str:
    above = loss_above(result, target)
    return "-" if above is None else formatting.signed(above)


def _times_100(result: QuantizerResult, metric: str) -> str:
    return f"{100 * result.metrics[metric].score.value:.0f}" if metric in result.metrics else "-"


def _verdict(result: QuantizerResult) -> str:
    metric = result.metrics.get("verbmem_f")
    back = metric.recovery if metric else None
    return (
        f"{formatting.signed(back.value)} {formatting.ends(back)} {result.verdict.word}"
        if back
        else result.verdict.word
    )


def _ratio(result: QuantizerResult) -> str:
    return _two_digits(survival_ratio(result))


def _known(name: str) -> str:
    return "; ".join(_two_digits(KNOWN[way].get(name)) for way in ("smol-full-bf16", "smol-lora"))


def _two_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    """Replaces the text between the two marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("results.duckdb"))
    parser.add_argument("--page", type=Path, default=Path("docs/survival.md"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    board = boards.ranked(arguments.store, "smol")
    marked_pages.rewrite(arguments.page, START, END, text(board, arguments.seeds))


if __name__ == "__main__":
    main()
