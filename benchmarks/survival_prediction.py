"""Fits harness/quantize/survival/measure.py on a store, and writes how well survival predicts into docs/survival.md."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.stats import rankdata, spearmanr

from benchmarks import boards, marked_pages, real_tables

START, END = (
    "<!-- prediction: made by benchmarks/survival_prediction.py from results.duckdb -->",
    "<!-- /prediction -->",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One entry under one quantizer: survival ratio, and for VerbMem what came back and whether it ``reverts``."""

    entry: str
    bits: int
    ratio: float
    recovered: float | None
    reverts: bool


def points(store: Path, corpus: str = "mini") -> list[Point]:
    """Returns what a store knows of entries that had forgotten and whose update is not negligible."""
    found = []
    for row in boards.ranked(store, corpus).rows:
        for result in row.by_quantizer.values() if row.submission.role == "entry" else ():
            metric, ratio = result.metrics.get("verbmem_f"), real_tables.survival_ratio(result)
            if metric is None or ratio is None or metric.verdict == "never forgot":
                continue
            share = metric.recovered_share
            point = Point(
                entry=row.submission.name,
                bits=result.spec.bits,
                ratio=ratio,
                recovered=share.value if share else None,
                reverts=metric.verdict == "reverts",
            )
            found.append(point)
    return found


def fit(given: list[Point]) -> tuple[float, float]:
    """Returns intercept and slope of the log-odds of ``reverts``; lightly ridged, so separable data have a fit."""
    x = np.clip([point.ratio for point in given], 0.0, 1.0)
    y = np.array([point.reverts for point in given], dtype=float)

    def loss(weights: np.ndarray) -> float:
        odds = weights[0] - weights[1] * x
        return float(np.mean(np.logaddexp(0.0, odds) - y * odds) + 1e-4 * (weights**2).sum())

    intercept, slope = minimize(loss, np.array([0.0, 1.0])).x
    return float(intercept), float(slope)


def rank_correlation(given: list[Point]) -> tuple[float, int]:
    """Returns Spearman's correlation of survival with the share that came back, and of how many cells."""
    pairs = [(point.ratio, point.recovered) for point in given if point.recovered is not None]
    return float(spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs)


def held_out(given: list[Point]) -> tuple[float, float]:
    """Returns AUC and Brier score where each entry is predicted from the others."""
    chances = np.zeros(len(given))
    for name in {point.entry for point in given}:
        intercept, slope = fit([point for point in given if point.entry != name])
        for index, point in enumerate(given):
            if point.entry == name:
                chances[index] = 1 / (1 + np.exp(slope * min(max(point.ratio, 0.0), 1.0) - intercept))
    y = np.array([point.reverts for point in given])
    ranks = rankdata(chances)
    area = (ranks[y].sum() - y.sum() * (y.sum() + 1) / 2) / (y.sum() * (~y).sum())
    return float(area), float(np.mean((chances - y) ** 2))


def text(given: list[Point]) -> str:
    """Returns the Markdown between the two marks."""
    lines = ["| cells | rank correlation of survival with the share that came back | cells counted |", "|---|---|---|"]
    for name, chosen in (
        ("all widths", given),
        ("4 bit", [point for point in given if point.bits == 4]),
        ("3 bit", [point for point in given if point.bits == 3]),
        ("8 bit", [point for point in given if point.bits == 8]),
    ):
        found, count = rank_correlation(chosen)
        lines.append(f"| {name} | {found:.2f} | {count} |")
    area, brier = held_out(given)
    base = float(np.mean([point.reverts for point in given]))
    intercept, slope = fit(given)
    lines += [
        "",
        f"Log-odds of `reverts` = {intercept:.2f} - {slope:.2f} x ratio, from {len(given)} cells of "
        f"{len({point.entry for point in given})} entries, {sum(point.reverts for point in given)} of them `reverts`. "
        f"Each entry predicted from the others: AUC {area:.2f}, Brier score {brier:.3f} (always saying the mean "
        f"{base:.3f}: {base * (1 - base):.3f}).",
    ]
    return "\n".join(lines)


def main() -> None:
    """Replaces the text between the two marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("results.duckdb"))
    parser.add_argument("--page", type=Path, default=Path("docs/survival.md"))
    arguments = parser.parse_args()
    marked_pages.rewrite(arguments.page, START, END, text(points(arguments.store)))


if __name__ == "__main__":
    main()
