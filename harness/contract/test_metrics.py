"""Every metric that an installed package adds, and whether anything is installed at all."""

from __future__ import annotations

import pytest

from harness import plugins
from harness.records import DocumentRecord
from harness.score.corpora import catalogue
from harness.score.metrics import plugins as metric_plugins
from harness.score.metrics.table import broken, plugged_in

NAMES = sorted(plugged_in())
REFERENCE = "The lamp of Orla Head was lit by Mara Quill in the first winter."
ANSWERS = (REFERENCE, "", " ", "The lamp", "the the the the the", "Nobody knows.", "\N{SNOWMAN}\n\nQ:", REFERENCE * 50)


def test_something_is_installed_that_can_be_tested() -> None:
    """A misspelt group of entry points would otherwise pass unseen."""
    declared = [plugin for group in plugins.GROUPS for plugin in plugins.found(group)]
    assert declared or catalogue.outside(), (
        f"no installed package declares an entry point of {', '.join(plugins.GROUPS)}, and QUENCH_CORPORA names no"
        " corpus: run `pip install .` in your package first, and see docs/extending.md"
    )


def test_no_declared_metric_is_broken() -> None:
    """Whatever a package declares can be used."""
    assert dict(broken()) == {}


def _values(name: str, reference: str) -> list[float | None]:
    documents = [
        DocumentRecord(
            index=index, split="forget", prompt_sha256="", prompt_excerpt="", response=answer, reference_sha256=None,
            reference_excerpt="", scores={},
        )
        for index, answer in enumerate(ANSWERS)
    ]  # fmt: skip
    texts = [("Question: who lit it?\nAnswer: ", reference)] * len(documents)
    found, (score,) = metric_plugins.scored([plugged_in()[name]], documents, texts)
    assert score.value is not None, score.missing_reason
    return [document.scores.get(name) for document in found]


@pytest.mark.parametrize("reference", [REFERENCE, "", "1"])
@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_value_in_its_range_for_any_answer_and_the_same_again(name: str, reference: str) -> None:
    """Empty, short, long and strange answers."""
    assert _values(name, reference) == _values(name, reference)


@pytest.mark.parametrize("name", NAMES)
def test_it_tells_answers_apart(name: str) -> None:
    """A metric that gives all answers one value says nothing."""
    assert len(set(_values(name, REFERENCE))) > 1
