"""Scores against an independent restatement of MUSE's functions: every miniature document, a few real NEWS ones."""

import os
from functools import cache
from pathlib import Path

import muse_oracle
import pytest

from harness.paths import content_dir
from harness.score.corpora import catalogue
from harness.score.evaluation import evaluate
from harness.score.model.language_model import QuenchLM

MINI_DATA = Path("muse_mini/data")
MODELS = ("mini-retrain", "mini-target-4bit")
REAL_MODEL, REAL_DATA = "QUENCH_REAL_MODEL", "QUENCH_REAL_DATA"
KNOWMEM = {"knowmem_f": "forget_qa", "knowmem_r": "retain_qa"}


def load(folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@cache
def miniature(name):
    return load(content_dir("submissions") / name / "weights")


def settings_of(task):
    settings = catalogue.task_settings(task)
    return settings["dataset_kwargs"], settings.get("generation_kwargs", {}).get("max_gen_toks")


def ours(model, tokenizer, task, *, data_dir=None, limit=None):
    return evaluate(model, tokenizer, task, data_dir=data_dir, device="cpu", limit=limit, seed=0)


def theirs(model, tokenizer, corpus, metric, folder, *, limit=None):
    """The oracle's responses and scores with the lengths and shots that the task's YAML states."""
    data, tokens = settings_of(f"muse_{corpus}_{metric}")
    if metric == "verbmem_f":
        assert data["reference_tokens"] == tokens
        return muse_oracle.verbmem(model, tokenizer, folder, tokens=tokens, limit=limit)
    return muse_oracle.knowmem(
        model, tokenizer, folder, KNOWMEM[metric], pairs=data["icl_pairs"], tokens=tokens, limit=limit
    )


def assert_same_answers(found, expected, metric):
    assert [document.response for document in found.documents] == [response for response, _ in expected]
    for document, (_, score) in zip(found.documents, expected, strict=True):
        assert document.scores[metric] == pytest.approx(score, abs=1e-6)
    mean = sum(score for _, score in expected) / len(expected)
    assert found.scores[0].value == pytest.approx(mean, abs=1e-6)
    assert (found.scores[0].metric, found.scores[0].num_docs) == (metric, len(expected))


def assert_same_privacy(found, model, tokenizer, folder, reference_auc):
    """Compares per text and in all; returns the oracle's log-probabilities by text."""
    scores, logprobs = {}, {}
    for split in ("forget", "holdout"):
        documents = [document for document in found.documents if document.split == split]
        texts = muse_oracle.read(folder, "privleak", split)[: len(documents)]
        logprobs |= {text: muse_oracle.token_logprobs(model, tokenizer, text) for text in texts}
        scores[split] = [muse_oracle.min_k(logprobs[text]) for text in texts]
        assert [document.scores["min_k_40"] for document in documents] == pytest.approx(scores[split], abs=1e-6)
    auc, privleak = muse_oracle.privleak(scores["forget"], scores["holdout"], reference_auc)
    by_name = {score.metric: score.value for score in found.scores}
    assert by_name["auc"] == pytest.approx(auc, abs=1e-6)
    assert by_name["privleak"] == pytest.approx(privleak, abs=1e-6)
    return logprobs


# One model's answers on one task and the other's texts by default; what takes longer with `make test-all`.
QUICK = (("mini-retrain", "knowmem_f"),)
ANSWERS = [
    (name, metric) if (name, metric) in QUICK else pytest.param(name, metric, marks=pytest.mark.slow)
    for name in MODELS
    for metric in ("verbmem_f", *KNOWMEM)
]


@pytest.mark.parametrize(("name", "metric"), ANSWERS)
def test_every_miniature_document_gets_the_oracle_s_response_and_score(name, metric):
    model, tokenizer = miniature(name)
    folder = catalogue.tasks_dir() / MINI_DATA
    found = ours(model, tokenizer, f"muse_mini_{metric}")
    assert len(found.documents) == {"verbmem_f": 32, "knowmem_f": 91, "knowmem_r": 100}[metric]
    assert_same_answers(found, theirs(model, tokenizer, "mini", metric, folder), metric)


@pytest.mark.parametrize("name", [pytest.param(MODELS[0], marks=pytest.mark.slow), MODELS[1]])
def test_every_miniature_text_gets_the_oracle_s_log_probabilities_and_membership_score(name):
    model, tokenizer = miniature(name)
    folder = catalogue.tasks_dir() / MINI_DATA
    found = ours(model, tokenizer, "muse_mini_privleak")
    assert len(found.documents) == 144
    logprobs = assert_same_privacy(found, model, tokenizer, folder, catalogue.load_corpus("mini").reference_auc)
    lm = QuenchLM(model, tokenizer)
    for text, one in zip(logprobs, lm.texts.score_texts(list(logprobs)), strict=True):
        assert one.logprobs == pytest.approx(logprobs[text], abs=1e-5)


def test_the_oracle_tells_models_apart_so_that_agreeing_with_it_means_something():
    folder = catalogue.tasks_dir() / MINI_DATA
    means = [sum(score for _, score in theirs(*miniature(name), "mini", "verbmem_f", folder, limit=3)) / 3
             for name in MODELS]  # fmt: skip
    assert means[1] > means[0] + 0.3


@pytest.fixture(scope="module")
def real():
    """Weights of a real model and real MUSE NEWS, where the two variables name them."""
    for variable in (REAL_MODEL, REAL_DATA):
        if not Path(os.environ.get(variable) or "/nowhere/at/all").is_dir():
            pytest.skip(f"{variable} names no folder: run `make real-check` and see the Makefile for the two variables")
    return (*load(Path(os.environ[REAL_MODEL])), Path(os.environ[REAL_DATA]))


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "limit"), [("verbmem_f", 3), ("knowmem_f", 5), ("knowmem_r", 5)])
def test_a_real_model_answers_real_news_as_the_oracle_says(real, metric, limit):
    model, tokenizer, folder = real
    found = ours(model, tokenizer, f"muse_news_{metric}", data_dir=folder, limit=limit)
    assert_same_answers(found, theirs(model, tokenizer, "news", metric, folder, limit=limit), metric)


@pytest.mark.slow
def test_a_real_model_s_membership_scores_of_real_news_are_the_oracle_s(real):
    model, tokenizer, folder = real
    found = ours(model, tokenizer, "muse_news_privleak", data_dir=folder, limit=6)
    assert [document.split for document in found.documents] == ["forget", "holdout"] * 3
    assert_same_privacy(found, model, tokenizer, folder, catalogue.load_corpus("news").reference_auc)
