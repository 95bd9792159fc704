"""Synthetic logs of past evaluations, with figures that follow from a formula.

A reference has ten different words and a response the first k of them: then
ROUGE-L recall is k/10 and F1 is 2k/(10+k), whoever computes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEN = ["amber", "birch", "cedar", "delta", "ember", "frost", "grove", "haven", "inlet", "juniper"]
REFERENCE = " ".join(TEN)
FILES = {"verbmem_f": "forget", "knowmem_f": "forget_qa", "knowmem_r": "retain_qa"}
PAIRS = [{"question": f"What is pair {number}?", "answer": f"Answer {number}"} for number in range(10)]
SHOTS = "".join(f"Question: {pair['question']}\nAnswer: {pair['answer']}\n\n" for pair in PAIRS)
KNOWN = {"verbmem_f": (2, 0, 10, 4), "knowmem_f": (0, 10, 5, 1), "knowmem_r": (10, 10, 7, 8)}
"""Words that each response shares with its reference."""
FORGET = (1.0, 2.0, 2.0, 5.0)
HOLDOUT = (2.0, 3.0, 4.0)
OPEN_KEYS = {
    "verbmem_f": "forget_verbmem_ROUGE", "knowmem_f": "forget_knowmem_ROUGE", "knowmem_r": "retain_knowmem_ROUGE",
}  # fmt: skip


def f1(known: int) -> float:
    """ROUGE-L F1 of the first ``known`` of ten words."""
    return 2 * known / (10 + known)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def auc(forget: Sequence[float], holdout: Sequence[float]) -> float:
    """P(holdout < forget), ties half, one pair after the other."""
    return mean([1.0 if h < f else 0.5 if h == f else 0.0 for f in forget for h in holdout])


def prompt(metric: str, number: int) -> str:
    if metric == "verbmem_f":
        return f"The beginning of text {number}, which went on with"
    return f"{SHOTS}Question: What is number {number} of {FILES[metric]}?\nAnswer: "


def entries(metric: str, known: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": prompt(metric, number), "gt": REFERENCE, "response": " ".join(TEN[:count]),
            "rougeL": f1(count), "rougeL_recall": count / 10, "rouge1": f1(count), "rouge1_recall": count / 10,
        }
        for number, count in enumerate(known)
    ]  # fmt: skip


def text(split: str, number: int) -> str:
    return f"Text {number} of {split} tells of rivers and hills."


def scored(split: str, scores: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {
            "text": text(split, number), "PPL": 0.8 * score, "PPL/lower": 1.0, "PPL/zlib": 0.01,
            **{f"Min-{k}%": score for k in (5, 10, 20, 30, 40, 50, 60)},
        }
        for number, score in enumerate(scores)
    ]  # fmt: skip


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def muse_bench(
    folder: Path, *, known: dict[str, Sequence[int]] | None = None, forget: Sequence[float] = FORGET,
    holdout: Sequence[float] = HOLDOUT, summaries: bool = True,
) -> Path:  # fmt: skip
    """Writes one model's folder as muse_bench writes it, and returns it."""
    for metric, counts in (KNOWN if known is None else known).items():
        write(folder / metric / "log.json", entries(metric, counts))
        if summaries:
            write(folder / metric / "agg.json", {"mean_rougeL": mean([f1(count) for count in counts])})
    splits = {"forget": forget, "retain": (1.0,), "holdout": holdout}
    write(folder / "privleak" / "log.json", {split: scored(split, scores) for split, scores in splits.items()})
    if summaries:
        write(folder / "privleak" / "auc.json", {"forget_holdout_Min-40%": auc(forget, holdout)})
    return folder


def evaluation(**changes: Any) -> dict[str, Any]:
    """The JSON value of an evaluation file of OpenUnlearning; ``changes`` replace its metrics."""
    value: dict[str, Any] = {
        OPEN_KEYS[metric]: {
            "agg_value": mean([f1(count) for count in counts]),
            "value_by_index": {
                str(number): {
                    "rouge1_recall": entry["rouge1_recall"], "rougeL_f1": entry["rougeL"],
                    "rougeL_recall": entry["rougeL_recall"], "input": entry["prompt"],
                    "ground_truth": entry["gt"], "generation": entry["response"],
                }
                for number, entry in enumerate(entries(metric, counts))
            },
        }
        for metric, counts in KNOWN.items()
    }  # fmt: skip
    sides = {
        split: {"agg_value": mean(scores), "value_by_index": {str(i): {"score": s} for i, s in enumerate(scores)}}
        for split, scores in (("forget", FORGET), ("holdout", HOLDOUT))
    }
    value["mia_min_k"] = {**sides, "auc": 1 - auc(FORGET, HOLDOUT), "agg_value": 1 - auc(FORGET, HOLDOUT)}
    # With the default reference of 0.5.
    value["privleak"] = {"agg_value": 100 * (auc(FORGET, HOLDOUT) - 0.5) / 0.5}
    return value | changes


def corpus_texts(folder: Path) -> Path:
    """Writes the texts that the synthetic logs are on, in MUSE's local form, and returns their folder."""
    for metric in ("knowmem_f", "knowmem_r"):
        items = [
            {"question": f"What is number {number} of {FILES[metric]}?", "answer": REFERENCE}
            for number in range(len(KNOWN[metric]))
        ]
        write(folder / "knowmem" / f"{FILES[metric]}.json", items)
        write(folder / "knowmem" / f"{FILES[metric]}_icl.json", PAIRS)
    verbatim = [
        {"prompt": prompt("verbmem_f", number), "gt": f"{REFERENCE} and so on without end"}
        for number in range(len(KNOWN["verbmem_f"]))
    ]
    write(folder / "verbmem" / "forget.json", verbatim)
    for split, scores in (("forget", FORGET), ("holdout", HOLDOUT)):
        write(folder / "privleak" / f"{split}.json", [text(split, number) for number in range(len(scores))])
    return folder
