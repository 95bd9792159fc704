"""`quench corpus check`: what a folder must hold to be a corpus, with all faults at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from harness.cli.main import app
from harness.errors import CorpusError
from harness.score.corpora import catalogue
from harness.score.corpora import check as corpus_check
from harness.score.metrics.formulas import PRIMARY

ROOT = Path(__file__).parents[3]
LETTERS = ROOT / "docs" / "extending" / "quench_example" / "muse_letters"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "muse_letters"
    shutil.copytree(LETTERS, place)
    return place


def facts(folder: Path, **changed: Any) -> None:
    told = json.loads((folder / "corpus.json").read_text(encoding="utf-8")) | changed
    (folder / "corpus.json").write_text(json.dumps(told), encoding="utf-8")


def settings(path: Path, **changed: Any) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")) | changed), encoding="utf-8")


def write(folder: Path, split: str, items: Any) -> None:
    (folder / "data" / f"{split}.json").write_text(json.dumps(items), encoding="utf-8")


def read(folder: Path, split: str) -> Any:
    return json.loads((folder / "data" / f"{split}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("place", [LETTERS, ROOT / "tasks" / "muse_mini"], ids=lambda place: place.name)
def test_a_good_corpus_has_no_fault_and_its_counts_are_shown(place: Path) -> None:
    found = corpus_check.check(place)
    assert found.faults == ()
    for split in found.splits:
        items = json.loads((place / "data" / f"{split.name}.json").read_text(encoding="utf-8"))
        assert (split.items, split.repeated) == (len(items), 0)
        assert split.words is not None
        assert split.words > 3
        assert split.sha256 is not None
    assert {"knowmem/forget_qa", "verbmem/forget", "privleak/holdout", "raw/retain1"} <= {s.name for s in found.splits}


@pytest.mark.parametrize("name", ["news", "books"])
def test_texts_on_the_hub_are_left_alone(name: str) -> None:
    found = corpus_check.check(ROOT / "tasks" / f"muse_{name}")
    assert found.faults == ()
    assert found.splits == ()
    assert any("The texts are on the hub" in remark for remark in found.remarks)


def test_other_texts_are_looked_at_instead_and_no_pin_is_held_against_them(folder: Path, tmp_path: Path) -> None:
    found = corpus_check.check(folder, data_dir=ROOT / "tasks" / "muse_mini" / "data")
    assert found.faults == ()
    assert {split.name: split.items for split in found.splits}["verbmem/forget"] == 32


BREAK: dict[str, tuple[Callable[[Path], object], str]] = {
    "no facts": (lambda f: (f / "corpus.json").unlink(), "corpus.json can't be read as JSON"),
    "a list": (lambda f: (f / "corpus.json").write_text("[]"), "corpus.json must be a JSON object with name, title"),
    "no title": (lambda f: (f / "corpus.json").write_text('{"name": "letters"}'), "has no 'title': add it."),
    "a number": (lambda f: facts(f, label=3), "'label' is 3, and str is accepted"),
    "an empty licence": (lambda f: facts(f, license=""), "'license' is '', and str is accepted"),
    "capitals": (lambda f: facts(f, name="Letters"), "The corpus is called 'Letters': lower-case letters"),
    "a taken name": (lambda f: facts(f, name="mini"), "is a corpus called 'mini' already: take another name"),
    "an AUC of 2": (lambda f: facts(f, reference_auc=2), "'reference_auc' is 2, and an AUC lies above 0 and up to 1"),
    "no AUC source": (lambda f: facts(f, reference_auc=0.5), "states a reference AUC without 'reference_source'"),
    "a branch": (lambda f: facts(f, hub_repo="a/b", revision="main"), "'revision' is 'main', and the commit of the"),
    "a wrong pin": (lambda f: facts(f, data_sha256="0" * 64), "The texts have the digest"),
    "a split's pin": (lambda f: facts(f, split_sha256={"verbmem/forget": "0"}), "verbmem/forget has the digest"),
    "no tasks": (lambda f: [p.unlink() for p in f.glob("*.yaml")], "has no task: add verbmem_f.yaml"),
    "another task": (lambda f: (f / "toxicity.yaml").write_text("a: b"), "toxicity.yaml is no task"),
    "code": (lambda f: (f / "utils.py").write_text("print()"), "utils.py is code, which no corpus brings"),
    "code in a task": (lambda f: settings(f / "privleak.yaml", doc_to_text="{{ x }}"), "sets doc_to_text, which a"),
    "broken YAML": (lambda f: (f / "privleak.yaml").write_text("a: ["), "privleak.yaml can't be read"),
    "another corpus": (lambda f: settings(f / "privleak.yaml", dataset_kwargs={"corpus": "mini"}), "have corpus: let"),
    "no settings": (lambda f: settings(f / "privleak.yaml", dataset_kwargs=3), "have corpus: letters, and has None"),
    "other questions": (
        lambda f: settings(f / "knowmem_f.yaml", dataset_kwargs={"corpus": "letters", "questions": "retain_qa"}),
        "must have questions: forget_qa, and has 'retain_qa'",
    ),
    "no shots": (
        lambda f: settings(f / "knowmem_f.yaml", dataset_kwargs={"corpus": "letters", "questions": "forget_qa"}),
        "must have icl_pairs, a whole number above 0, and has None",
    ),
    "too many shots": (
        lambda f: settings(
            f / "knowmem_f.yaml", dataset_kwargs={"corpus": "letters", "questions": "forget_qa", "icl_pairs": 9}
        ),
        "asks for 9 in-context pairs, and knowmem/forget_qa_icl has 2",
    ),
    "sampling": (
        lambda f: settings(f / "verbmem_f.yaml", generation_kwargs={"max_gen_toks": 4, "do_sample": True}),
        "must have do_sample: false, all scoring is greedy",
    ),
    "endless answers": (
        lambda f: settings(f / "verbmem_f.yaml", generation_kwargs={"do_sample": False}),
        "must have max_gen_toks, a whole number above 0",
    ),
    "no group": (lambda f: (f / "group.yaml").unlink(), "group.yaml is missing"),
    "half a group": (lambda f: settings(f / "group.yaml", task=["a"]), "must name the group muse_letters and its "),
    "no texts": (lambda f: (f / "data/verbmem/forget.json").unlink(), "forget.json is missing: its tasks read verbmem"),
    "an object": (lambda f: write(f, "verbmem/forget", {}), "must be a JSON list with at least one item"),
    "an empty list": (lambda f: write(f, "raw/forget", []), "must be a JSON list with at least one item"),
    "half a file": (lambda f: (f / "data/verbmem/forget.json").write_text('[{"a'), "can't be read as JSON"),
    "Latin-1": (lambda f: (f / "data/raw/forget.json").write_bytes(b'["caf\xe9"]'), "is not UTF-8 (byte 5)"),
    "a wrong item": (lambda f: write(f, "verbmem/forget", [{"prompt": "a"}]), "Item 0 of"),
    "an empty answer": (
        lambda f: write(f, "knowmem/forget_qa", [{"question": "a?", "answer": " "}]), "has an empty answer: fill it",
    ),
    "an empty text": (lambda f: write(f, "privleak/retain", ["", "a b c"]), "1 of 2 texts are empty: fill them"),
    "half a character": (lambda f: write(f, "privleak/retain", ["\ud800"]), "holds a lone surrogate"),
    "forget in holdout": (
        lambda f: write(f, "privleak/holdout", read(f, "privleak/forget")[:1]),
        "privleak/forget and privleak/holdout share 1 text, the first is 'Dear Ada",
    ),
    "forget in retain": (
        lambda f: write(f, "raw/retain1", read(f, "raw/forget")), "raw/forget and raw/retain1 share 4 texts",
    ),
    "a question as its own example": (
        lambda f: write(f, "knowmem/forget_qa_icl", read(f, "knowmem/forget_qa")),
        "knowmem/forget_qa and knowmem/forget_qa_icl share 4 texts, the first is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BREAK)
def test_each_fault_is_named_with_its_place(fault: str, folder: Path) -> None:
    damage, said = BREAK[fault]
    damage(folder)
    found = corpus_check.check(folder)
    assert any(said in sentence for sentence in found.faults), found.faults
    assert all(sentence.endswith((".", "'")) for sentence in found.faults)


def test_all_faults_come_at_once_and_the_command_ends_with_2(folder: Path) -> None:
    facts(folder, title=7)
    (folder / "verbmem_f.yaml").unlink()
    write(folder, "privleak/holdout", read(folder, "privleak/forget"))
    (folder / "data" / "knowmem" / "retain_qa.json").unlink()
    result = CliRunner().invoke(app, ["corpus", "check", str(folder)])
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    shared = "privleak/forget and privleak/holdout share 4 texts"
    for part in ("'title' is 7", "group.yaml must name", shared, "retain_qa.json is missing"):
        assert sum(part in line for line in errors) == 1, part
    assert "privleak/forget" in result.stdout
    told = json.loads(CliRunner().invoke(app, ["corpus", "check", str(folder), "--json"]).stdout)
    assert told["schema"] == "quench.corpus.check/1"
    assert [f"Error: {fault}" for fault in told["faults"]] == errors
    assert {row["name"]: row["items"] for row in told["rows"]}["knowmem/retain_qa"] is None


def test_a_good_corpus_is_said_to_be_one(folder: Path) -> None:
    result = CliRunner().invoke(app, ["corpus", "check", str(folder)])
    assert result.exit_code == 0
    assert "can be scored." in result.stdout
    assert "Note: No reference AUC is stated" in result.stdout
    assert result.stderr == ""


def test_what_is_odd_but_usable_is_a_remark(folder: Path) -> None:
    write(folder, "raw/forget", ["caf\u0065\u0301 one", "a \ufffd b", "tab\x07", "twice twice", "twice twice"])
    facts(folder, data_sha256=None, data_note="x")
    found = corpus_check.check(folder)
    assert found.faults == ()
    told = " ".join(found.remarks)
    for part in (
        "1 of 5 items repeat another letter for letter", "1 texts hold replacement characters",
        "1 texts hold control characters", "1 texts are not in the composed form (NFC)",
        "has data_note, which nothing reads", 'No digest is pinned, so changed texts pass unseen: add "data_sha256": "',
    ):  # fmt: skip
        assert part in told
    digest = told.split('"data_sha256": "')[1][:64]
    assert digest == json.loads((LETTERS / "corpus.json").read_text(encoding="utf-8"))["data_sha256"]


def test_many_faulty_items_are_counted_not_listed(folder: Path) -> None:
    write(folder, "verbmem/forget", [{"prompt": "a"}] * 40)
    found = corpus_check.check(folder)
    mine = [fault for fault in found.faults if "verbmem" in fault]
    assert len(mine) == 6
    assert mine[-1].endswith("35 more items are as faulty.")


def test_a_corpus_of_some_tasks_needs_their_texts_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for metric in ("knowmem_f", "knowmem_r"):
        (folder / f"{metric}.yaml").unlink()
    shutil.rmtree(folder / "data" / "knowmem")
    settings(folder / "group.yaml", task=["muse_letters_verbmem_f", "muse_letters_privleak"])
    facts(folder, data_sha256=None)
    found = corpus_check.check(folder)
    assert found.faults == ()
    (pin,) = [remark for remark in found.remarks if "No digest is pinned" in remark]
    monkeypatch.setenv("QUENCH_CORPORA", str(folder))
    assert catalogue.load_corpus("letters").data_sha256 in pin


def test_the_digest_of_a_corpus_with_all_tasks_is_what_it_was() -> None:
    assert len(catalogue.load_corpus("mini").tasks) == len(PRIMARY)
    assert catalogue.load_corpus("mini").data_sha256.startswith("75f0f1f1d946")


def test_a_folder_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"There is no folder .*nowhere: name one with corpus\.json"):
        corpus_check.check(tmp_path / "nowhere")
    result = CliRunner().invoke(app, ["corpus", "check", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: There is no folder")


def test_nothing_of_the_folder_is_run(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('was run')", encoding="utf-8")
    text = (folder / "privleak.yaml").read_text(encoding="utf-8")
    (folder / "privleak.yaml").write_text(text + "process_results: !function evil.run\n", encoding="utf-8")
    found = corpus_check.check(folder)
    assert any("sets process_results" in fault for fault in found.faults)
    assert any("evil.py is code" in fault for fault in found.faults)
