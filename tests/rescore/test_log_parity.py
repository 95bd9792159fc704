"""Golden numbers of the reference implementation, sent through logs: what comes out is what the reference computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import logged_runs as runs
import numpy as np
import pytest

from harness.records import Evaluation
from harness.rescore import find as log_finder
from harness.rescore import recompute
from harness.score.corpora import catalogue
from harness.score.metrics.formulas import MEMBERSHIP_KEYS

FIXTURES = Path(__file__).parent.parent / "fixtures"
ROUGE = json.loads((FIXTURES / "score_rouge.json").read_text())
CUTS = json.loads((FIXTURES / "score_knowmem_cut.json").read_text())
PRIVLEAK = json.loads((FIXTURES / "score_privleak.json").read_text())


def evaluate(path: Path, metric: str, corpus: str = "books") -> Evaluation:
    (model,) = log_finder.find([path])
    log = next(log for log in model.metrics if log.metric == metric)
    return recompute.rescore(model, log, catalogue.load_corpus(corpus))


def value(evaluation: Evaluation, metric: str) -> float:
    found = next(score.value for score in evaluation.scores if score.metric == metric)
    assert found is not None
    return found


def muse_log(metric: str) -> list[dict[str, Any]]:
    return [{"prompt": runs.prompt(metric, number), **case} for number, case in enumerate(ROUGE)]


@pytest.mark.parametrize("metric", ["verbmem_f", "knowmem_f", "knowmem_r"])
def test_every_rouge_score_of_a_logged_response_is_the_reference_s(tmp_path: Path, metric: str) -> None:
    runs.write(tmp_path / "m" / metric / "log.json", muse_log(metric))
    evaluation = evaluate(tmp_path / "m", metric)
    for case, document in zip(ROUGE, evaluation.documents, strict=True):
        for logged, stored in (("rougeL", metric), ("rougeL_recall", "rougeL_recall"), ("rouge1", "rouge1"),
                               ("rouge1_recall", "rouge1_recall")):  # fmt: skip
            assert document.scores[stored] == pytest.approx(case[logged], abs=1e-12)
    assert value(evaluation, metric) == pytest.approx(runs.mean([case["rougeL"] for case in ROUGE]), abs=1e-12)
    assert value(evaluation, "rouge1") == pytest.approx(runs.mean([case["rouge1"] for case in ROUGE]), abs=1e-12)


def test_the_same_responses_in_an_evaluation_file_have_the_same_scores(tmp_path: Path) -> None:
    entries = {
        str(number): {"input": runs.prompt("verbmem_f", number), "ground_truth": case["gt"],
                      "generation": case["response"]}
        for number, case in enumerate(ROUGE)
    }  # fmt: skip
    path = runs.write(tmp_path / "m" / "MUSE_EVAL.json", {"forget_verbmem_ROUGE": {"value_by_index": entries}})
    evaluation = evaluate(path, "verbmem_f")
    found = [document.scores["verbmem_f"] for document in evaluation.documents]
    assert found == pytest.approx([case["rougeL"] for case in ROUGE], abs=1e-12)


@pytest.mark.parametrize("metric", ["knowmem_f", "knowmem_r"])
def test_answers_that_a_log_left_whole_are_cut_as_the_reference_cuts_them(tmp_path: Path, metric: str) -> None:
    log = [
        {"prompt": runs.prompt(metric, number), "gt": "Paris", "response": case["raw"]}
        for number, case in enumerate(CUTS)
    ]  # fmt: skip
    runs.write(tmp_path / "m" / metric / "log.json", log)
    documents = evaluate(tmp_path / "m", metric).documents
    assert [document.response for document in documents] == [case["cut"] for case in CUTS]


def privleak_log(case: dict[str, Any]) -> dict[str, Any]:
    """What muse_bench would log of the case's log-probabilities."""
    log: dict[str, Any] = {}
    for split in ("forget", "holdout"):
        log[split] = []
        for number, (logprobs, min_40) in enumerate(
            zip(case[f"{split}_logprobs"], case[f"{split}_min40"], strict=True)
        ):
            # As the reference has it: the smallest int(n * ratio), in order.
            smallest = np.sort(logprobs)
            keys = {f"Min-{k}%": float(-np.mean(smallest[: int(len(logprobs) * k / 100)])) for k in (20, 60)}
            log[split].append(
                {"text": runs.text(split, number), "PPL": -float(np.mean(logprobs)), "Min-40%": min_40, **keys}
            )
    return log


@pytest.mark.parametrize("corpus", ["news", "books"])
@pytest.mark.parametrize("case", PRIVLEAK["cases"], ids=lambda case: str(case["name"]))
def test_auc_and_privleak_of_logged_scores_are_the_reference_s(
    tmp_path: Path, case: dict[str, Any], corpus: str
) -> None:
    runs.write(tmp_path / "m" / "privleak" / "log.json", privleak_log(case))
    evaluation = evaluate(tmp_path / "m", "privleak", corpus)
    assert value(evaluation, "auc") == pytest.approx(case["auc"], abs=1e-12)
    assert value(evaluation, "privleak") == pytest.approx(case["privleak"][corpus], abs=1e-6)
    losses = [np.mean(logprobs) for logprobs in case["holdout_logprobs"]]
    assert value(evaluation, "loss_holdout") == pytest.approx(-np.mean(losses), abs=1e-9)
    stored = {score.metric for score in evaluation.scores}
    assert stored == {"privleak", "auc", "auc_min_k_20", "auc_min_k_60", "auc_loss", "auc_zlib_loss", "loss_forget",
                      "loss_holdout"}  # fmt: skip


@pytest.mark.parametrize("case", PRIVLEAK["cases"], ids=lambda case: str(case["name"]))
def test_the_other_orientation_of_open_unlearning_is_turned_round(tmp_path: Path, case: dict[str, Any]) -> None:
    sides = {
        split: {"value_by_index": {str(n): {"score": score} for n, score in enumerate(case[f"{split}_min40"])}}
        for split in ("forget", "holdout")
    }
    path = runs.write(tmp_path / "m" / "MUSE_EVAL.json", {"mia_min_k": {**sides, "agg_value": 1 - case["auc"]}})
    (model,) = log_finder.find([path])
    assert model.metrics[0].stated_auc == pytest.approx(case["auc"], abs=1e-12)
    assert value(evaluate(path, "privleak", "news"), "privleak") == pytest.approx(case["privleak"]["news"], abs=1e-6)


def test_every_stored_membership_score_has_a_name_that_the_program_knows(tmp_path: Path) -> None:
    runs.muse_bench(tmp_path / "m")
    for document in evaluate(tmp_path / "m", "privleak").documents:
        assert set(document.scores) <= set(MEMBERSHIP_KEYS)
        assert "tokens" not in document.scores
