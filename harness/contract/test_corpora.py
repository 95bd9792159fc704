"""Every corpus that does not ship with Quench: packages' and those of folders that ``QUENCH_CORPORA`` names."""

from __future__ import annotations

from typing import Any

import pytest

from harness.contract import tiny_models
from harness.errors import CorpusError
from harness.score.corpora import catalogue
from harness.score.corpora import check as corpus_check
from harness.score.corpora.catalogue import load_corpus

NAMES = [name for name in catalogue.corpus_names() if not load_corpus(name).ships]
TASKS = [task for name in NAMES for task in load_corpus(name).tasks]


def test_no_declared_corpus_is_broken() -> None:
    """Whatever a package declares can be used."""
    assert dict(catalogue.broken()) == {}


@pytest.mark.parametrize("name", NAMES)
def test_its_folder_has_no_fault(name: str) -> None:
    """What `quench corpus check` says of it."""
    assert corpus_check.check(load_corpus(name).folder).faults == ()


@pytest.mark.parametrize("name", NAMES)
def test_its_texts_have_a_digest_that_is_pinned(name: str) -> None:
    """Changed texts would be noticed."""
    corpus = load_corpus(name)
    assert corpus.pinned_sha256 == corpus.data_sha256 or corpus.split_sha256, f"pin {corpus.data_sha256}"


@pytest.fixture(scope="session")
def reader() -> tuple[Any, Any]:
    """A random model and its tokenizer."""
    return tiny_models.reader()


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_scored_from_its_first_documents(task: str, reader: tuple[Any, Any]) -> None:
    """A random model answers badly, and gets a number."""
    from harness.score.evaluation import evaluate

    catalogue.check_task(task, reference="own")
    found = evaluate(
        *reader, task, data_dir=None, device="cpu", limit=4, seed=0, reference_auc="own" if "privleak" in task else None
    )
    assert found.documents
    (primary,) = [score for score in found.scores if score.metric == catalogue.metric_of(task)]
    assert primary.value is not None, primary.missing_reason
    assert not any(document.invalid_reason for document in found.documents)


@pytest.mark.parametrize("name", NAMES)
def test_quantizers_that_calibrate_find_texts(name: str) -> None:
    """Retain texts that share nothing with what is scored."""
    from harness import quantize
    from harness.run.plan import calibration_texts

    try:
        _, texts = calibration_texts.prepare(quantize.resolve("gptq-4bit-g128-sym"), load_corpus(name))
    except CorpusError as error:
        pytest.skip(f"it has no retain texts ({error}), so presets that calibrate can't be used")
    assert texts
