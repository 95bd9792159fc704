"""Metrics of installed packages: read from their YAML, scored beside Quench's own, never ranked, never in the way."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from stranger_packages import forget

from harness import plugins
from harness.publish import thresholds
from harness.publish.board import LeaderboardRow
from harness.publish.pages import submission as submission_page
from harness.records import DocumentRecord, Score
from harness.score.corpora import catalogue
from harness.score.metrics import plugins as metric_plugins
from harness.score.metrics import table as metric_table
from harness.score.metrics.formulas import METRICS, PRIMARY

FACTS = {
    "label": "Half", "description": "Always a half.", "source": "a test", "direction": "higher", "range": [0, 1],
    "tasks": ["knowmem_r"],
}  # fmt: skip
HALF = "def score(*, prompt, reference, response):\n    return 0.5\n"


def document(index: int, response: str) -> DocumentRecord:
    return DocumentRecord(
        index=index, split="forget", prompt_sha256="", prompt_excerpt="", response=response, reference_sha256=None,
        reference_excerpt="", scores={"knowmem_f": 0.25},
    )  # fmt: skip


@pytest.fixture
def metric(declare: Any) -> Any:
    """Declares a metric ``half`` with a function and facts of the test's own."""

    def make(code: str = HALF, name: str = "half", **facts: Any) -> None:
        site = declare("own-package", {plugins.METRICS: {name: "half_module:score"}}, half_module=code)
        stated = {key: value for key, value in (FACTS | facts).items() if value is not None}
        (site / "half_module.yaml").write_text(yaml.safe_dump(stated), encoding="utf-8")

    return make


def test_the_example_s_metric_is_known_with_its_package_and_without_its_code(example: Path) -> None:
    info = METRICS["first_words"]
    assert (info.label, info.direction, info.display_scale, info.unit) == ("First words", "lower", 100.0, "")
    assert info.source == "Quench's documentation (added by quench-example 0.1.0)"
    assert list(METRICS)[: len(PRIMARY)] == list(PRIMARY)
    assert list(METRICS)[-1] == "first_words"
    assert len(METRICS) == len(metric_table.OWN) + 1 == len(set(METRICS))
    assert list(metric_table.plugged_in("verbmem_f")) == ["first_words"]
    assert metric_table.plugged_in("knowmem_r") == {}
    assert "quench_example.first_words" not in sys.modules


def test_without_packages_the_table_is_quench_s_own() -> None:
    assert dict(METRICS) == dict(metric_table.OWN)
    assert "first_words" not in METRICS
    with pytest.raises(KeyError):
        METRICS["first_words"]


def test_the_example_s_metric_counts_the_first_words(example: Path) -> None:
    documents = [document(0, "the bells ring in the"), document(1, "The bells are"), document(2, "")]
    texts = [("p", "The bells ring in the rain"), ("p", "The bells ring"), ("p", "")]
    found, scores = metric_plugins.scored(tuple(metric_table.plugged_in().values()), documents, texts)
    assert [one.scores["first_words"] for one in found] == [1.0, pytest.approx(2 / 3), 0.0]
    assert [one.scores["knowmem_f"] for one in found] == [0.25] * 3
    assert scores == (Score(metric="first_words", value=pytest.approx(5 / 9), num_docs=3),)


def test_a_task_that_a_metric_looks_at_is_another_task_and_no_other_is(example: Path) -> None:
    tasks = [f"muse_mini_{name}" for name in PRIMARY]
    with_it = [catalogue.task_digest(task) for task in tasks]
    (example / "quench_example-0.1.0.dist-info" / "entry_points.txt").write_text("", encoding="utf-8")
    forget()
    without = [catalogue.task_digest(task) for task in tasks]
    assert [a == b for a, b in zip(with_it, without, strict=True)] == [False, False, True, True]
    assert [catalogue.task_digest(task) for task in tasks] == without


def test_another_version_of_its_package_is_another_task(metric: Any, tmp_path: Path) -> None:
    metric()
    first = catalogue.task_digest("muse_mini_knowmem_r")
    (info,) = (tmp_path / "site").glob("*.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.1\n", encoding="utf-8")
    forget()
    assert METRICS["half"].source.endswith("(added by own-package 1.1)")
    assert catalogue.task_digest("muse_mini_knowmem_r") != first


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def score(*, prompt, reference, response):\n    return 1 / len(response)", r"failed on document 1 \(Zero"),
        ("def score(*, prompt, reference, response):\n    return 1.5", r"gave 1\.5 for document 0: its range is 0"),
        ("def score(*, prompt, reference, response):\n    return float('nan')", "gave nan for document 0"),
        ("def score(*, prompt, reference, response):\n    return 'much'", r"failed on document 0 \(ValueError"),
        ("def score(text):\n    return 1", r"failed on document 0 \(TypeError"),
        ("score_ = 3", r"can't be imported \(AttributeError"),
        ("import nothing_of_that_name", r"can't be imported \(ModuleNotFoundError"),
    ],
)  # fmt: skip
def test_a_metric_that_fails_has_no_value_and_says_why(code: str, reason: str, metric: Any) -> None:
    metric(code)
    documents = [document(0, "some"), document(1, "")]
    found, (score,) = metric_plugins.scored(
        tuple(metric_table.plugged_in().values()), documents, [("p", "r"), ("p", "r")]
    )
    assert found == tuple(documents)
    assert score.value is None
    assert score.num_docs == 0
    assert score.missing_reason is not None
    assert score.missing_reason.startswith("Plug-in 'half' of own-package 1.0 (quench.metrics) ")
    assert re.search(reason, score.missing_reason)


def test_no_document_is_no_value(metric: Any) -> None:
    metric()
    _, (score,) = metric_plugins.scored(tuple(metric_table.plugged_in().values()), [], [])
    assert (score.value, score.missing_reason) == (None, "no document was answered")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"direction": "down"}, "has an unusable direction in .*'down'"),
        ({"range": [1, 0]}, "has an unusable range"),
        ({"range": [0]}, "has an unusable range"),
        ({"range": ["a", "b"]}, "has an unusable range"),
        ({"range": "0 to 1"}, "has an unusable range"),
        ({"tasks": ["privleak"]}, "has an unusable tasks"),
        ({"tasks": []}, "has an unusable tasks"),
        ({"scale": 0}, "has an unusable scale"),
        ({"scale": True}, "has an unusable scale"),
        ({"label": 3}, "has an unusable label"),
        ({"label": None}, "has no label in .*half_module.yaml: label, description, source, direction, range"),
        ({"colour": "red"}, "has unknown colour"),
    ],
)  # fmt: skip
def test_facts_that_can_not_be_used_are_named(facts: dict[str, Any], reason: str, metric: Any) -> None:
    metric(**facts)
    assert "half" not in METRICS
    assert set(METRICS) == set(metric_table.OWN)
    (told,) = metric_table.broken().values()
    with pytest.raises(plugins.PluginError, match=reason):
        raise plugins.PluginError(told)


def test_a_missing_or_broken_yaml_is_named(metric: Any, tmp_path: Path) -> None:
    metric()
    path = tmp_path / "site" / "half_module.yaml"
    for content, reason in ((None, "has no readable"), (b"a: [", "has no readable"), (b"- 3", "has no mapping in")):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        forget()
        assert reason in metric_table.broken()["half"]


@pytest.mark.parametrize("name", ["rouge1", "privleak", "verbmem_f"])
def test_a_package_can_not_replace_a_metric_of_quench(name: str, metric: Any) -> None:
    metric(name=name)
    assert METRICS[name] is metric_table.OWN[name]
    assert "takes a name of Quench itself" in metric_table.broken()[name]


def test_no_rule_of_ranking_knows_a_metric_of_a_package(example: Path) -> None:
    assert not {"first_words"} & {*thresholds.FORGET_METRICS, thresholds.UTILITY, thresholds.PRIVACY}


def test_a_page_shows_values_of_a_package_that_is_not_here_by_their_key(metric: Any) -> None:
    cells = {"knowmem_r": SimpleNamespace(scores=(Score(metric="half", value=0.5, num_docs=2),
                                                  Score(metric="gone", value=0.75, num_docs=2),
                                                  Score(metric="rouge1", value=0.1, num_docs=2)))}  # fmt: skip
    results = {"rtn-4bit-g64": SimpleNamespace(cells=cells), "empty": SimpleNamespace(cells={})}
    row: LeaderboardRow = SimpleNamespace(by_quantizer=results)  # type: ignore[assignment]
    metric()
    shown = submission_page.added_metrics(row)
    assert shown is not None
    assert [column["label"] for column in shown["columns"]] == ["gone", "Half"]
    assert {column["task"] for column in shown["columns"]} == {"Utility"}
    assert shown["columns"][0]["told"] == "Its package is not installed where this page was made."
    assert shown["lines"] == [{"quantizer": "rtn-4bit-g64", "values": [0.75, 50.0]}]
    cells["knowmem_r"].scores = ()
    assert submission_page.added_metrics(row) is None
