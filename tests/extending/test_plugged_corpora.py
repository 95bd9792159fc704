"""Corpora from outside: of installed packages and of named folders; texts and settings, never code."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from stranger_packages import EXAMPLE
from typer.testing import CliRunner

from harness import plugins
from harness.cli.main import app
from harness.errors import CorpusError, PluginError, UnknownNameError
from harness.run.sandbox import fence
from harness.score import lm_eval_hooks
from harness.score.corpora import catalogue, task_files
from harness.score.corpora import places as corpus_places
from harness.score.metrics.formulas import PRIMARY

LETTERS = EXAMPLE / "quench_example" / "muse_letters"
SHIPPED = ("books", "mini", "news", "smol")


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Copies the example's corpus to a folder of its own, which the environment names."""

    def copy(folder: str = "muse_letters", **facts: object) -> Path:
        place = tmp_path / "corpora" / folder
        shutil.copytree(LETTERS, place)
        if facts:
            told = json.loads((place / "corpus.json").read_text(encoding="utf-8")) | facts
            (place / "corpus.json").write_text(json.dumps(told), encoding="utf-8")
        monkeypatch.setenv(corpus_places.VARIABLE, str(place.parent))
        return place

    return copy


def change(path: Path, **settings: Any) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")) | settings), encoding="utf-8")


def test_the_example_s_corpus_is_one_of_all(example: Path) -> None:
    assert catalogue.corpus_names() == tuple(sorted((*SHIPPED, "letters")))
    corpus = catalogue.load_corpus("letters")
    assert corpus.tasks == tuple(f"muse_letters_{metric}" for metric in PRIMARY)
    assert corpus.folder == example / "quench_example" / "muse_letters"
    assert not corpus.ships
    assert catalogue.load_corpus("mini").ships
    assert corpus.data_sha256 == json.loads((LETTERS / "corpus.json").read_text(encoding="utf-8"))["data_sha256"]
    assert catalogue.resolve_tasks(["muse_letters"]) == corpus.tasks
    assert catalogue.broken() == {}
    for task in corpus.tasks:
        catalogue.check_task(task, reference="own")


def test_a_folder_that_the_environment_names_is_as_good_as_a_package(named: Callable[..., Path]) -> None:
    place = named()
    assert "letters" in catalogue.corpus_names()
    assert catalogue.outside() == (place,)
    os.environ[corpus_places.VARIABLE] = str(place)
    assert catalogue.outside() == (place,), "the folder of a single corpus may be named as well"
    del os.environ[corpus_places.VARIABLE]
    assert catalogue.corpus_names() == SHIPPED
    with pytest.raises(UnknownNameError):
        catalogue.load_corpus("letters")


def test_the_list_tells_where_every_corpus_and_its_texts_lie(named: Callable[..., Path]) -> None:
    place = named()
    done = CliRunner().invoke(app, ["corpus", "list", "--json"])
    listed = {row["corpus"]: row for row in json.loads(done.stdout)["rows"]}
    assert set(listed) == {*SHIPPED, "letters"}
    assert listed["letters"]["folder"] == str(place)
    assert listed["letters"]["texts"] == str(place / "data")
    assert listed["letters"]["comes_with"] == "QUENCH_CORPORA"
    assert listed["mini"]["comes_with"] == "Quench"
    assert listed["news"]["texts"].startswith("hf://muse-bench/MUSE-News@")
    assert listed["smol"]["texts"] == "--data-dir"
    assert str(place) in CliRunner().invoke(app, ["corpus", "list"]).stdout


def test_the_list_tells_the_package_of_a_corpus_and_why_it_can_not_be_used(example: Path) -> None:
    listed = json.loads(CliRunner().invoke(app, ["corpus", "list", "--json"]).stdout)["rows"]
    assert next(row for row in listed if row["corpus"] == "letters")["comes_with"] == "package quench-example"
    facts = example / "quench_example" / "muse_letters" / "corpus.json"
    facts.write_text(facts.read_text(encoding="utf-8").replace('"letters"', '"numbers"'), encoding="utf-8")
    listed = json.loads(CliRunner().invoke(app, ["corpus", "list", "--json"]).stdout)["rows"]
    (row,) = (row for row in listed if row["reason"])
    assert row["corpus"] == "letters"
    assert "is called 'numbers'" in row["reason"]


def test_a_task_from_outside_is_quench_s_template_with_its_own_settings(named: Callable[..., Path]) -> None:
    named()
    for metric in PRIMARY:
        mine, shipped = (catalogue.task_settings(f"muse_{name}_{metric}") for name in ("letters", "mini"))
        assert {key for key in mine if mine[key] != shipped[key]} <= {"task", "dataset_kwargs", "generation_kwargs"}
        assert mine["dataset_kwargs"]["corpus"] == "letters"
        assert catalogue.is_outside(f"muse_letters_{metric}")
        assert not catalogue.is_outside(f"muse_mini_{metric}")
    before = catalogue.task_digest("muse_letters_verbmem_f")
    path = catalogue.task_yaml("muse_letters_verbmem_f")
    change(path, dataset_kwargs={"corpus": "letters", "reference_tokens": 31})
    os.utime(path, ns=(1, 1))
    assert catalogue.task_digest("muse_letters_verbmem_f") != before


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"doc_to_text": "{{ cycler.__init__.__globals__.os.popen('id') }}"}, "sets doc_to_text, which a corpus may "),
        ({"process_results": "x", "class": "y"}, "sets class, process_results, which a corpus may not: include, task"),
        ({"dataset_path": "somewhere/else"}, "sets dataset_path"),
        ({"include": "../../evil.yaml"}, r"must have 'include: \.\./_metrics/knowmem_f\.yaml', which is Quench's own"),
        ({"include": ["../_metrics/knowmem_f.yaml"]}, r"must have 'include: "),
        ({"task": "muse_mini_knowmem_f"}, r"must have 'task: muse_letters_knowmem_f'"),
        ({"dataset_kwargs": {"corpus": "letters", "questions": "!function os.system"}}, r"names code \(!function os\."),
        ({"generation_kwargs": {"until": ["!function os.system"]}}, r"names code \(!function os\.system\), which no"),
    ],
)  # fmt: skip
def test_a_corpus_from_outside_can_bring_no_code(
    settings: dict[str, Any], reason: str, named: Callable[..., Path]
) -> None:
    change(named() / "knowmem_f.yaml", **settings)
    with pytest.raises(CorpusError, match=reason):
        catalogue.task_settings("muse_letters_knowmem_f")
    with pytest.raises(CorpusError):
        catalogue.task_digest("muse_letters_knowmem_f")
    assert catalogue.task_settings("muse_letters_verbmem_f"), "its other tasks are as they were"


def test_a_real_function_tag_is_read_as_text_and_refused(named: Callable[..., Path]) -> None:
    path = named() / "knowmem_f.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("icl_pairs: 2", "icl_pairs: !function evil.run"))
    (path.parent / "evil.py").write_text("raise SystemExit('was run')", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"names code \(!function evil\.run\)"):
        catalogue.task_settings("muse_letters_knowmem_f")


def test_functions_come_from_the_hooks_and_from_nowhere_else() -> None:
    found = lm_eval_hooks.with_functions(catalogue.task_settings("muse_mini_verbmem_f"))
    assert found["custom_dataset"] is lm_eval_hooks.verbmem_documents
    assert found["process_results"] is lm_eval_hooks.verbmem_results
    private = lm_eval_hooks.with_functions(catalogue.task_settings("muse_mini_privleak"))
    assert private["class"] is lm_eval_hooks.MembershipTask
    assert [each["aggregation"] for each in private["metric_list"]] == [
        lm_eval_hooks.aggregate_privleak, lm_eval_hooks.aggregate_auc,
    ]  # fmt: skip
    for name in ("os.system", "harness.score.metrics.formulas.auc", "harness.score.lm_eval_hooks.os.system"):
        with pytest.raises(CorpusError, match="'custom_dataset' names !function"):
            lm_eval_hooks.with_functions({"custom_dataset": f"!function {name}"})
    with pytest.raises(AttributeError):
        lm_eval_hooks.with_functions({"custom_dataset": "!function harness.score.lm_eval_hooks.nothing"})


@pytest.mark.parametrize("name", ["mini", "news"])
def test_a_package_can_not_take_the_name_of_a_shipped_corpus(name: str, declare: Any) -> None:
    declare("own-package", {plugins.CORPORA: {name: "own.muse_letters"}})
    assert catalogue.corpus_names() == SHIPPED
    assert "takes a name of Quench itself" in catalogue.broken()[name]
    assert catalogue.load_corpus(name).ships


@pytest.mark.parametrize(
    ("change_it", "reason"),
    [
        (lambda folder: (folder / "corpus.json").unlink(), r"has no .*corpus\.json: name the folder of a corpus"),
        (lambda folder: (folder / "corpus.json").write_text("{", encoding="utf-8"), r"can't be read as JSON"),
        (lambda folder: (folder / "corpus.json").write_text('{"name": "other"}', encoding="utf-8"), "called 'other'"),
        (lambda folder: shutil.rmtree(folder.parent), "which is not there: install its package again"),
    ],
)  # fmt: skip
def test_a_broken_corpus_of_a_package_hinders_no_other_and_says_why(
    change_it: Callable[[Path], None], reason: str, example: Path
) -> None:
    change_it(example / "quench_example" / "muse_letters")
    assert catalogue.corpus_names() == SHIPPED
    with pytest.raises((PluginError, CorpusError), match=reason):
        catalogue.load_corpus("letters")


def test_a_folder_whose_tasks_would_have_the_names_of_others_is_refused(declare: Any) -> None:
    site = declare("own-package", {plugins.CORPORA: {"letters": "own.muse_mini", "words": "own.words"}})
    for folder, name in (("muse_mini", "letters"), ("words", "words")):
        shutil.copytree(LETTERS, site / "own" / folder)
        (site / "own" / folder / "corpus.json").write_text(json.dumps({"name": name}), encoding="utf-8")
    assert catalogue.corpus_names() == SHIPPED
    assert "would make tasks of the same names: rename one folder" in catalogue.broken()["letters"]
    assert "can't be a corpus's: call it muse_NAME" in catalogue.broken()["words"]


def test_what_the_environment_names_and_is_no_corpus_is_said_at_once(
    named: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named(name="mini")
    with pytest.raises(CorpusError, match=r"are both called 'mini': give one another 'name'"):
        catalogue.corpus_names()
    monkeypatch.setenv(corpus_places.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(CorpusError, match=r"QUENCH_CORPORA names .*nowhere, where there is no corpus: name a folder"):
        catalogue.corpus_names()
    monkeypatch.setenv(corpus_places.VARIABLE, "")
    assert catalogue.corpus_names() == SHIPPED


def test_missing_texts_of_a_corpus_from_outside_point_to_its_check(named: Callable[..., Path]) -> None:
    place = named()
    (place / "data" / "verbmem" / "forget.json").unlink()
    with pytest.raises(CorpusError, match=r"forget\.json is missing: see `quench corpus check .*muse_letters`"):
        catalogue.check_task("muse_letters_verbmem_f")


def test_a_fenced_worker_may_read_a_corpus_from_outside(named: Callable[..., Path]) -> None:
    place = named()
    assert place in set(fence._software())


def test_one_file_is_read_without_what_it_includes(tmp_path: Path) -> None:
    assert set(task_files.read_mapping(LETTERS / "privleak.yaml")) == {"include", "task", "dataset_kwargs"}
    with pytest.raises(CorpusError, match="is missing: restore it"):
        task_files.read_mapping(tmp_path / "none.yaml")
