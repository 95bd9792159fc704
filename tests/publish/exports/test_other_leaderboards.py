"""Records for other collections: what their forms ask for is there, and the numbers are the board's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import synthetic_board as synthetic
import yaml

from harness.publish.board import Board
from harness.publish.exports import other_leaderboards
from harness.publish.ranking import rank as ranking
from harness.publish.release import Entry, Release
from harness.records import CellResult
from harness.score.corpora import catalogue

QUANTIZERS = ("reference", "rtn-4bit-g128", "bnb-nf4")
URL = "https://example.org/board/"


def release(cells: list[CellResult], corpus: str, base_url: str | None = None) -> Release:
    board: Board = ranking.rank(cells, corpus)
    return Release(
        title="Quench", base_url=base_url, store_sha256="cd" * 32, scoring_version=1, boards=[board], cells=cells,
        links={corpus: {row.submission.name: f"submission/{row.submission.name}.html" for row in board.rows}},
        corpora={corpus: catalogue.load_corpus(corpus)} if corpus in catalogue.corpus_names() else {},
    )  # fmt: skip


def scored(corpus: str, **more: Any) -> list[CellResult]:
    plan = synthetic.Plan(name="lora", levels=synthetic.LORA, kind="lora_adapter", more=more)
    return synthetic.cells([*synthetic.CONTROLS, plan], corpus=corpus, quantizers=QUANTIZERS)


@pytest.fixture(scope="module")
def news() -> Release:
    return release(scored("news"), "news", URL)


def only(found: Release) -> Entry:
    (entry,) = found.entries()
    return entry


def record(found: Release) -> dict[str, Any]:
    return other_leaderboards.every_eval_ever(only(found), found)


def objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from objects(inner)


def test_a_record_has_the_fields_that_every_eval_ever_requires(news: Release) -> None:
    made = record(news)
    assert made["schema_version"] == "0.3.0"
    required = {
        "schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "model_info", "eval_library",
        "evaluation_results",
    }  # fmt: skip
    assert set(made) - required == {"evaluation_timestamp"}
    assert {"source_type", "source_organization_name", "evaluator_relationship"} <= set(made["source_metadata"])
    assert made["source_metadata"]["source_organization_url"] == URL
    assert made["eval_library"] == {"name": "quench-bench", "version": "unknown"}
    assert made["model_info"]["id"] == "quench/lora"
    assert made["model_info"]["additional_details"]["deployment_type"] == "self_deployed"
    assert made["model_info"]["additional_details"]["model_availability"] == "unknown"
    assert made["retrieved_timestamp"].isdigit()
    for result in made["evaluation_results"]:
        assert set(result) == {
            "evaluation_name", "source_data", "evaluation_timestamp", "metric_config", "score_details",
        }  # fmt: skip
        config = result["metric_config"]
        assert config["score_type"] == "continuous"
        assert config["min_score"] <= result["score_details"]["score"] <= config["max_score"]


def test_details_are_texts_as_the_form_demands(news: Release) -> None:
    found = [
        value[name] for value in objects(record(news)) for name in ("additional_details", "details") if name in value
    ]
    assert len(found) > 20
    for details in found:
        assert all(isinstance(value, str) for value in details.values()), details


def test_a_record_has_every_score_of_the_board_in_display_units_with_its_interval(news: Release) -> None:
    by_name = {result["evaluation_name"]: result for result in record(news)["evaluation_results"]}
    entry = only(news)
    assert len(by_name) == 4 * len(QUANTIZERS)
    for quantizer, under in entry.row.by_quantizer.items():
        for metric, measured in under.metrics.items():
            made = by_name[f"muse_news_{metric} under {quantizer}"]
            scale = 1 if metric == "privleak" else 100
            assert made["score_details"]["score"] == measured.score.value * scale
            interval = made["score_details"]["uncertainty"]["confidence_interval"]
            assert (interval["lower"], interval["upper"]) == (measured.score.low * scale, measured.score.high * scale)
            assert made["metric_config"]["additional_details"]["quantizer"] == quantizer
            if measured.rho is not None:
                said = json.loads(made["score_details"]["details"]["remaining_share"])
                assert said == [measured.rho.value, measured.rho.low, measured.rho.high]


def test_directions_and_ends_of_scales_are_those_of_the_metrics(news: Release) -> None:
    configs = {
        result["metric_config"]["additional_details"]["metric"]: result["metric_config"]
        for result in record(news)["evaluation_results"]
    }
    assert [configs[name]["lower_is_better"] for name in ("verbmem_f", "knowmem_f", "knowmem_r")] == [True, True, False]
    assert configs["privleak"]["additional_details"]["ideal"] == "0"
    # The synthetic reference AUC is 0.5: twice as much is the most there can be.
    assert (configs["privleak"]["min_score"], configs["privleak"]["max_score"]) == (-100, pytest.approx(100))
    assert (configs["knowmem_f"]["min_score"], configs["knowmem_f"]["max_score"]) == (0, 100)


@pytest.mark.parametrize(
    ("corpus", "wanted"),
    [
        ("news", {"source_type": "hf_dataset", "hf_repo": "muse-bench/MUSE-News", "dataset_name": "MUSE NEWS"}),
        ("mini", {"source_type": "other", "dataset_name": "MUSE-mini"}),
        ("elsewhere", {"source_type": "other", "dataset_name": "elsewhere"}),
    ],
)
def test_the_source_of_the_data_is_the_corpus_s(corpus: str, wanted: dict[str, str]) -> None:
    found = record(release(scored(corpus), corpus))
    for result in found["evaluation_results"]:
        assert wanted.items() <= result["source_data"].items()


def test_a_model_on_the_hub_is_called_by_its_name_there() -> None:
    found = record(release(scored("mini", weights="hf://owner/model", revision="a" * 40), "mini"))
    assert found["model_info"]["id"] == "owner/model"
    assert found["model_info"]["additional_details"]["model_availability"] == "open_weights"
    assert found["evaluation_id"].startswith("quench-mini/owner/model/")


def test_the_same_store_gives_the_same_record(news: Release) -> None:
    assert json.dumps(record(news)) == json.dumps(record(release(scored("news"), "news", URL)))


def test_privleak_without_a_known_reference_is_left_out_not_given_a_made_up_scale() -> None:
    cells = [
        replace(cell, scores=tuple(score for score in cell.scores if score.metric != "auc"))
        for cell in scored("mini")
    ]  # fmt: skip
    names = [result["evaluation_name"] for result in record(release(cells, "mini"))["evaluation_results"]]
    assert "muse_mini_knowmem_f under bnb-nf4" in names
    assert not [name for name in names if "privleak" in name]


def test_the_hub_s_file_lists_every_score_with_dataset_task_and_quantizer(news: Release) -> None:
    text = other_leaderboards.hub_results(only(news), news)
    assert text is not None
    items = yaml.safe_load(text)
    assert len(items) == 4 * len(QUANTIZERS)
    for item in items:
        assert list(item) == ["dataset", "value", "date", "source", "notes"]
        assert item["dataset"]["id"] == "muse-bench/MUSE-News"
        assert item["dataset"]["task_id"].startswith("muse_news_")
        assert item["source"] == {"url": f"{URL}submission/lora.html", "name": "Quench"}
        assert isinstance(item["value"], float)
        assert item["date"] == "2026-11-02"
    assert {note.split("(")[1].split(")")[0] for note in (item["notes"] for item in items)} == set(QUANTIZERS)


def test_without_an_address_there_is_no_source_rather_than_a_broken_one(news: Release) -> None:
    found = replace(news, base_url=None)
    text = other_leaderboards.hub_results(only(found), found)
    assert text is not None
    assert all("source" not in item for item in yaml.safe_load(text))
    assert "source_organization_url" not in record(found)["source_metadata"]


@pytest.mark.parametrize("corpus", ["mini", "elsewhere"])
def test_a_corpus_that_is_not_on_the_hub_has_no_file_for_it(corpus: str) -> None:
    found = release(scored(corpus), corpus)
    assert other_leaderboards.hub_results(only(found), found) is None


def test_hostile_text_stays_a_value_of_the_yaml() -> None:
    odd = 'x: [1]\n- dataset: {id: "evil"}\u202e &a *a !!python/object:os.system'
    cells = [replace(cell, spec=replace(cell.spec, label=odd)) for cell in scored("news")]
    found = release(cells, "news")
    text = other_leaderboards.hub_results(only(found), found)
    assert text is not None
    assert "\u202e" not in text
    items = yaml.safe_load(text)
    assert {item["dataset"]["id"] for item in items} == {"muse-bench/MUSE-News"}
    assert all("python/object" in item["notes"] for item in items)
