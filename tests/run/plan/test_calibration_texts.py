"""Quantizers that look at activations get the corpus's texts, and the texts are part of what a cell is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from jobs_without_models import make_submission

from harness.errors import QuantizationError
from harness.quantize import calibration, resolve
from harness.records import Submission
from harness.run.plan import calibration_texts, planner
from harness.score.corpora import catalogue

GPTQ = "gptq-4bit-g64-sym"


@pytest.fixture
def submissions(tmp_path: Path) -> dict[str, Submission]:
    weights = tmp_path / "the-target" / "weights"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_bytes(b"target")
    (weights / "tokenizer.json").write_text("{}")
    made = make_submission("the-target", folder=str(tmp_path / "the-target"), role="target")
    return {made.name: made}


def texts_of(corpus: catalogue.Corpus, config: str, split: str) -> set[str]:
    return {item["text"] for item in catalogue.load_split(corpus, config, split)}


def test_a_quantizer_that_looks_at_no_activations_stays_as_it_is() -> None:
    spec = resolve("rtn-4bit-g64")
    assert calibration_texts.prepare(spec, catalogue.load_corpus("mini")) == (spec, ())


@pytest.mark.parametrize(
    ("suffix", "split"), [("", "retain1"), ("-calib-forget", "forget"), ("-calib-holdout", "holdout")]
)
def test_texts_come_from_the_split_that_the_name_says(suffix: str, split: str) -> None:
    corpus = catalogue.load_corpus("mini")
    spec, texts = calibration_texts.prepare(resolve(GPTQ + suffix), corpus)
    assert texts
    assert set(texts) <= texts_of(corpus, "raw", split)
    assert spec.calibration is not None
    assert spec == replace(resolve(GPTQ + suffix), calibration=spec.calibration)


def test_random_tokens_need_no_texts_but_have_a_digest() -> None:
    spec, texts = calibration_texts.prepare(resolve(GPTQ + "-calib-random"), catalogue.load_corpus("mini"))
    assert texts == ()
    assert spec.calibration is not None


def test_retain_texts_share_no_thirteen_words_with_anything_that_is_scored() -> None:
    corpus = catalogue.load_corpus("mini")
    _, texts = calibration_texts.prepare(resolve(GPTQ), corpus)
    scored = [
        item["text"] for split in ("forget", "holdout") for item in catalogue.load_split(corpus, "privleak", split)
    ]
    assert calibration.clear_of(texts, scored) == texts


def test_a_corpus_without_raw_texts_gives_those_of_privleak(tmp_path: Path) -> None:
    for split, items in {
        "retain": [f"a kept text of its own, number {n}" for n in range(4)], "forget": ["x"], "holdout": ["y"]
    }.items():  # fmt: skip
        path = tmp_path / "privleak" / f"{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(items))
    _, texts = calibration_texts.prepare(resolve(GPTQ), catalogue.load_corpus("news", data_dir=tmp_path))
    assert sorted(texts) == [f"a kept text of its own, number {n}" for n in range(4)]


def test_a_job_carries_its_texts_and_their_digest_is_in_the_key(
    submissions: dict[str, Submission], monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned() -> planner.Plan:
        return planner.plan(submissions, quantizers=[resolve(GPTQ)], corpus="mini")

    def job_of(plan: planner.Plan) -> planner.Job:
        # Where the library is not installed the job is impossible, and its key is the same.
        return [*plan.jobs, *(job for job, _ in plan.impossible)][0]

    first = job_of(planned())
    assert first.calibration
    assert first.spec.calibration == calibration.digest(first.calibration, calibration.recipe_of(first.spec))
    whole = calibration_texts.prepare

    def fewer(spec: planner.QuantizerSpec, corpus: catalogue.Corpus) -> tuple[planner.QuantizerSpec, tuple[str, ...]]:
        _, texts = whole(spec, corpus)
        return calibration.prepare(spec, {"retain": texts[1:]})

    monkeypatch.setattr(calibration_texts, "prepare", fewer)
    second = job_of(planned())
    assert {cell.key for cell in first.cells}.isdisjoint(cell.key for cell in second.cells)


def test_a_corpus_without_a_usable_text_makes_the_job_impossible_with_the_sentence(
    submissions: dict[str, Submission], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(
        spec: planner.QuantizerSpec, corpus: catalogue.Corpus
    ) -> tuple[planner.QuantizerSpec, tuple[str, ...]]:
        raise QuantizationError("No text is left to calibrate on.")

    monkeypatch.setattr(calibration_texts, "prepare", none_left)
    monkeypatch.setattr(planner, "backend_of", lambda spec: Available())
    plan = planner.plan(submissions, quantizers=[resolve(GPTQ)], corpus="mini")
    assert not plan.jobs
    assert [reason for _, reason in plan.impossible] == ["No text is left to calibrate on."]


class Available:
    def unavailable_reason(self, spec: object, device: str) -> None:
        return None

    def library_version(self) -> str:
        return "0"
