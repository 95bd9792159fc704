"""Our figures beside those of the paper: a table, and which of its claims hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.experiments.arxiv_2602_13151.models import PAPER, Model
from harness.publish.board import Board, LeaderboardRow, QuantizerResult
from harness.publish.pages.published import Published
from harness.publish.statistics.quantities import Estimate
from harness.publish.thresholds import REFERENCE
from harness.score.metrics.formulas import METRICS, PRIMARY

FP4 = "bnb-fp4"
NOTHING = "No claim can be judged: there are no whole cells at 4 bit; those scored with --limit don't count."
COLUMNS = ("method", "parameters", "seed", "quantizer", *PRIMARY, "verdict", "remaining", "paper")


def figures(published: Sequence[Published], corpus: str) -> dict[tuple[str, str, str], Published]:
    """Returns the paper's rows of a corpus by method, ``full`` or ``LoRA``, and quantizer."""
    return {
        (row.method, row.kind, row.quantizer): row
        for row in published
        if PAPER in row.url and row.corpus == corpus and row.quantizer
    }


def table(
    board: Board, models: Sequence[Model], paper: Mapping[tuple[str, str, str], Published]
) -> list[dict[str, Any]]:
    """Returns a row for each model and quantizer, in the order of the models.

    ROUGE is times 100 and PrivLeak in percent, each with the ends of its 95%
    interval (``_low``, ``_high``) and the paper's figure (``_paper``, None
    where it has none, as on the miniature).
    """
    by_name = {row.submission.name: row for row in board.rows}
    rows = []
    for model in models:
        for name, result in _results(by_name.get(model.name)):
            told = paper.get((model.recipe.method, model.recipe.parameters, name))
            row: dict[str, Any] = {
                "submission": model.name, "method": model.recipe.method, "parameters": model.recipe.parameters,
                "target": model.target, "seed": model.seed, "quantizer": name, "verdict": result.verdict.word,
            }  # fmt: skip
            for metric in PRIMARY:
                found = result.metrics.get(metric)
                scale = METRICS[metric].display_scale
                for part, value in _ends(found.score if found else None).items():
                    row[f"{metric}{part}"] = None if value is None else value * scale
                row[f"{metric}_paper"] = told.scores.get(metric) if told else None
            kept = result.metrics.get("verbmem_f")
            row["remaining"] = kept.rho.value if kept and kept.rho else None
            said = [f"{told.scores[metric]:.1f}" for metric in PRIMARY if metric in told.scores] if told else []
            row["paper"] = " / ".join(said) or None
            rows.append(row)
    return rows


def _results(row: LeaderboardRow | None) -> list[tuple[str, QuantizerResult]]:
    return list(row.by_quantizer.items()) if row else []


def _ends(score: Estimate | None) -> dict[str, float | None]:
    return {
        "": score.value if score else None,
        "_low": score.low if score else None,
        "_high": score.high if score else None,
    }


def paragraph(rows: Sequence[Mapping[str, Any]], main_target: str) -> str:
    """Returns which of the paper's claims hold in these numbers, counted in the rows; nothing in it is fixed.

    Args:
        rows: Of ``table``.
        main_target: Models unlearned from another one are the contrast.
    """
    rows = [row for row in rows if row["verbmem_f"] is not None]
    main = [row for row in rows if row["target"] == main_target]
    four = sorted(
        {str(row["quantizer"]) for row in main if _is_four(str(row["quantizer"]))}, key=lambda name: name != FP4
    )
    sentences = [_returns(main, name) for name in four]
    sentences += [
        _against(main, FP4, "knowmem_r", "utility at 4 bit (FP4) is higher", lambda full, lora: lora - full),
        _against(
            main, FP4, "privleak", "PrivLeak at 4 bit (FP4) is nearer to 0", lambda full, lora: abs(full) - abs(lora)
        ),
        _contrast([row for row in rows if row["target"] != main_target]),
    ]
    return " ".join(sentence for sentence in sentences if sentence) or NOTHING


def _is_four(quantizer: str) -> bool:
    return "4bit" in quantizer or quantizer in (FP4, "bnb-nf4")


def _returns(rows: Sequence[Mapping[str, Any]], quantizer: str) -> str:
    counted = []
    for parameters in ("full", "LoRA"):
        own = [row for row in rows if row["parameters"] == parameters and row["quantizer"] == quantizer]
        back = sum(row["verdict"] == "reverts" for row in own)
        holds = sum(row["verdict"] == "holds" for row in own)
        gained = [
            row["verbmem_f"] - before
            for row in own
            if row["verbmem_f"] is not None and (before := _reference(rows, row["submission"], "verbmem_f")) is not None
        ]
        mean = f", VerbMem {sum(gained) / len(gained):+.1f} points on average" if gained else ""
        counted.append(f"{back} of {len(own)} {parameters} models revert and {holds} hold{mean}")
    return f"Under {quantizer} {'; '.join(counted)}."


def _reference(rows: Sequence[Mapping[str, Any]], submission: str, metric: str) -> float | None:
    own = [row for row in rows if row["submission"] == submission and row["quantizer"] == REFERENCE]
    return own[0][metric] if own else None


def _pairs(rows: Sequence[Mapping[str, Any]], quantizer: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    by_key = {(row["method"], row["seed"], row["parameters"]): row for row in rows if row["quantizer"] == quantizer}
    return [
        (full, by_key[method, seed, "LoRA"])
        for (method, seed, parameters), full in by_key.items()
        if parameters == "full" and (method, seed, "LoRA") in by_key
    ]


def _against(rows: Sequence[Mapping[str, Any]], quantizer: str, metric: str, says: str, better: Any) -> str:
    here = _count(_pairs(rows, quantizer), metric, better)
    there = _count(_pairs(rows, quantizer), f"{metric}_paper", better)
    if here is None:
        return ""
    paper = f"; in the paper's own figures for {there[0]} of {there[1]}" if there else ""
    apart = _apart(rows, quantizer, metric)
    return f"With LoRA, {says} for {here[0]} of {here[1]} pairs of the same method{apart}{paper}."


def _count(
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], column: str, better: Any
) -> tuple[int, int] | None:
    known = [
        (full[column], lora[column]) for full, lora in pairs if full[column] is not None and lora[column] is not None
    ]
    return (sum(better(full, lora) > 0 for full, lora in known), len(known)) if known else None


def _apart(rows: Sequence[Mapping[str, Any]], quantizer: str, metric: str) -> str:
    """Says how many pairs have intervals that don't overlap: the others are differences nobody has shown."""
    apart = sum(
        full[f"{metric}_low"] > lora[f"{metric}_high"] or lora[f"{metric}_low"] > full[f"{metric}_high"]
        for full, lora in _pairs(rows, quantizer)
        if None not in (full[f"{metric}_low"], lora[f"{metric}_low"])
    )
    return f" ({apart} with intervals apart)"


def _contrast(rows: Sequence[Mapping[str, Any]]) -> str:
    four = [row for row in rows if _is_four(str(row["quantizer"]))]
    if not four:
        return ""
    back = sum(row["verdict"] == "reverts" for row in four)
    return f"Unlearned from the ordinary target {four[0]['target']}, {back} of {len(four)} cells at 4 bit revert."
