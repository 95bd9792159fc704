"""The real-model experiment's own steps, on a model of a million parameters and texts of our own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import board_picture, loss_picture, real_experiment, real_tables, zero_level
from harness import paths
from harness.publish.board import Board
from harness.publish.ranking import rank as ranking
from harness.score.corpora import catalogue
from harness.store.store import Store
from harness.store.withheld_texts import is_withheld
from harness.submit.manifest import load as manifest
from harness.unlearn.from_target import recipe_from_options

ROOT = Path(__file__).parents[2]

BASE = paths.content_dir("submissions") / "mini-target-plain" / "weights"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts written and both controls trained for a step."""
    root = tmp_path_factory.mktemp("smol")
    for name in ("raw/forget", "privleak/retain", "privleak/holdout"):
        path = root / "news" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = [
            f"{name} {number}: the old mill stands by the river in the year {number}. " * 30 for number in range(3)
        ]
        path.write_text(json.dumps(["too short", *texts]), encoding="utf-8")
    real_experiment.write_texts(root / "news", root / "data", BASE)
    real_experiment.fine_tune("smol-target", ("forget", "retain1"), BASE, root / "data", root / "board", steps=1)
    real_experiment.fine_tune("smol-retrain", ("retain1",), BASE, root / "data", root / "board", steps=1)
    return root


def test_texts_are_beginnings_of_one_length_and_prompts_their_first_half(work: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    forget = json.loads((work / "data/raw/forget.json").read_text())
    items = json.loads((work / "data/verbmem/forget.json").read_text())
    assert len(forget) == len(items) == 3
    for text, item in zip(forget, items, strict=True):
        assert text.startswith(item["prompt"].strip()[:40])
        assert abs(len(tokenizer(text)["input_ids"]) - real_experiment.TOKENS) <= 2
    assert json.loads((work / "data/privleak/retain.json").read_text()) != forget


def test_utility_asks_what_is_not_shown_and_every_question_once(work: Path) -> None:
    asked = json.loads((work / "data/knowmem/retain_qa.json").read_text())
    shown = json.loads((work / "data/knowmem/retain_qa_icl.json").read_text())
    questions = [pair["question"] for pair in (*shown, *asked)]
    assert (len(shown), len(asked)) == (5, 72)
    assert len(set(questions)) == len(questions)
    assert all(pair["question"].endswith("?") and pair["answer"].isdigit() for pair in (*shown, *asked))


def test_controls_are_a_target_and_a_retrain_of_the_corpus(work: Path) -> None:
    known = manifest.load_all(work / "board")
    assert {name: one.role for name, one in known.items()} == {"smol-target": "target", "smol-retrain": "retrain"}
    assert {one.corpus for one in known.values()} == {"smol"}
    assert known["smol-target"].weights_sha256 != known["smol-retrain"].weights_sha256


def test_what_is_there_is_not_made_again(work: Path) -> None:
    before = (work / "board/smol-target/weights/model.safetensors").stat().st_mtime_ns
    real_experiment.fine_tune("smol-target", ("forget",), BASE, work / "data", work / "board", steps=1)
    assert (work / "board/smol-target/weights/model.safetensors").stat().st_mtime_ns == before


def test_texts_that_are_all_too_short_stop_it(work: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    with pytest.raises(SystemExit, match="Fewer than two texts"):
        real_experiment._beginnings(["short"], AutoTokenizer.from_pretrained(BASE))


def test_the_ways_differ_in_what_is_trained_and_how_it_is_rounded() -> None:
    found = {}
    for entry in real_experiment.ENTRIES:
        recipe, _ = recipe_from_options(
            "ga_gdr", lora=entry.lora, full=entry.lora is None, settings=[*entry.settings, "checkpoint_every=10"]
        )
        found[entry.name] = (recipe.parameters, recipe.update_precision, recipe.max_steps)
    assert found == {
        "smol-full-float32": ("full", "float32", 15),
        "smol-full-bf16": ("full", "bfloat16", 42),
        "smol-full-bf16-long": ("full", "bfloat16", 80),
        "smol-lora": ("LoRA", "float32", 15),
    }


def test_a_further_seed_says_which_entry_it_repeats(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def fake(*arguments: str) -> None:
        calls.append(arguments)
        folder = Path(arguments[arguments.index("--out") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "submission.yaml").write_text("name: x\n", encoding="utf-8")

    monkeypatch.setattr(real_experiment, "quench", fake)
    for seed in (0, 1):
        real_experiment.unlearn(real_experiment.ENTRIES[-1], seed, 0, work / "data", work / "other", steps=2)
    assert "seed_of" not in (work / "other/smol-lora-s0/submission.yaml").read_text()
    assert (work / "other/smol-lora-s1/submission.yaml").read_text().endswith("seed_of: smol-lora-s0\n")
    assert all("max_steps=2" in call and "max_steps=15" not in call for call in calls)


def test_the_corpus_ships_no_text_and_takes_its_reference_from_the_retrain_control() -> None:
    corpus = catalogue.load_corpus("smol")
    assert corpus.reference_auc is None
    assert list(corpus.folder.rglob("*.json")) == [corpus.folder / "corpus.json"]


@pytest.fixture(scope="module")
def board() -> Board:
    """The corpus as the committed store has it."""
    with Store.open(ROOT / "results.duckdb", read_only=True) as opened:
        return ranking.rank(opened.cells(with_documents=True), "smol")


def test_the_page_s_tables_are_those_of_the_store(board: Board) -> None:
    page = (ROOT / "docs" / "survival.md").read_text(encoding="utf-8")
    told = page.split(real_tables.START)[1].split(real_tables.END)[0].strip()
    assert told == real_tables.text(board, (0, 1))


def test_the_picture_has_a_dot_for_each_model_and_quantizer_where_the_table_has_it(board: Board) -> None:
    rows = loss_picture.points(board, (0, 1))
    found = real_tables.results(board)
    assert len(rows) == 2 * len(real_experiment.ENTRIES) * len(real_experiment.QUANTIZERS.split(","))
    for row in rows:
        cell = found[f"smol-{row['way']}-s{row['seed']}"][row["quantizer"]].cells["verbmem_f"]
        target = found["smol-target"][row["quantizer"]].cells["verbmem_f"]
        own, known = ({score.metric: score.value for score in one.scores}["reference_nll"] for one in (cell, target))
        assert row["above"] == pytest.approx(own - known)
    drawn = loss_picture.draw(rows)
    assert drawn.count("<path") >= len(rows)
    for word in {row["way"] for row in rows} | {row["quantizer"] for row in rows}:
        assert f">{word}</text>" in drawn
    assert not re.search(r"<script|<image|href|@import|\bon\w+=", drawn)


@pytest.mark.parametrize("theme", board_picture.THEMES)
def test_the_committed_picture_is_of_the_committed_store(board: Board, theme: str) -> None:
    drawn = board_picture.in_both_themes(loss_picture.draw(loss_picture.points(board, (0, 1))))[theme]
    told = (ROOT / "docs" / f"forgotten-{theme}.svg").read_text(encoding="utf-8")
    assert told == drawn, "the picture is old: run `make picture`"


def test_survival_is_within_a_fifth_of_the_earlier_run_where_that_had_two_digits(board: Board) -> None:
    """Its figures are known to half a hundredth: that much more or less is the same figure."""
    found = real_tables.results(board)
    for way, known in real_tables.KNOWN.items():
        for seed in (0, 1):
            for quantizer, ratio in known.items():
                ours = real_tables.survival_ratio(found[f"{way}-s{seed}"][quantizer])
                assert ours == pytest.approx(ratio, rel=0.2, abs=0.005), (way, seed, quantizer)


def test_no_text_is_committed_and_no_word_of_an_answer(board: Board) -> None:
    rows = (*board.controls, *board.rows)
    cells = [cell for row in rows for result in row.by_quantizer.values() for cell in result.cells.values()]
    documents = [document for cell in cells for document in cell.documents]
    assert documents
    assert all(is_withheld(document) or not document.response for document in documents)
    assert not any(document.reference_excerpt or document.prompt_excerpt for document in documents)


def test_small_weights_move_in_vain_where_a_level_lies_on_zero_and_not_where_none_does() -> None:
    import torch

    torch.manual_seed(0)
    target = torch.randn(64, 512)
    all_move = 2e-3 * torch.randn(64, 512)
    small_move = torch.where(target.abs() < 0.1, all_move, torch.zeros(()))
    found = {}
    for name, update in (("all", all_move), ("small", small_move)):
        for level_on_zero in (True, False):
            left, whole = zero_level.products(target, target + update, level_on_zero=level_on_zero)
            found[name, level_on_zero] = left / whole
    assert abs(found["small", True]) < 0.05
    assert min(found["small", False], found["all", True], found["all", False]) > 0.5


def test_rounding_to_levels_gives_each_group_at_most_16_of_them_and_zero_where_a_level_lies_there() -> None:
    import torch

    torch.manual_seed(0)
    weight = torch.randn(8, 128)
    weight[:, 0] = 1e-4
    for level_on_zero in (True, False):
        rounded = zero_level.round_to_levels(weight, level_on_zero=level_on_zero)
        assert all(len(group.unique()) <= 16 for group in rounded.reshape(-1, 64))
        assert bool((rounded[:, 0] == 0).all()) == level_on_zero
        assert float((rounded - weight).abs().max()) < 0.75 * 6.5 / 15
