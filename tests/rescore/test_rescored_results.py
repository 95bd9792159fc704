"""Flags, intervals and rows of past evaluations, their way through a store, and that they are never ranked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import logged_runs as runs
import numpy as np
import pytest
import synthetic_board as synthetic

from harness.errors import CorpusError, InputError
from harness.publish import release, thresholds
from harness.publish.pages import site as site_pages
from harness.publish.ranking import rank as ranking
from harness.publish.statistics import quantities
from harness.publish.tables import formats as table_formats
from harness.publish.tables import rows as table_rows
from harness.records import CellResult, QuantizerSpec
from harness.rescore import corpus_match
from harness.rescore import find as log_finder
from harness.rescore import flags as log_flags
from harness.rescore import results as rescored_results
from harness.rescore.results import Precision, Rescored
from harness.score.corpora import catalogue
from harness.score.metrics.formulas import PRIMARY
from harness.store.store import Store

REFERENCE = QuantizerSpec(
    name="reference", backend="reference", bits=16, group_size=None, symmetric=None, label="16 bit"
)  # fmt: skip
FP4 = QuantizerSpec(name="bnb-fp4", backend="bnb", bits=4, group_size=64, symmetric=None, label="FP4, group 64")
ASSUMED = Precision(spec=REFERENCE, stated=False)
BOOKS_AUC = 0.5393
WORDS = ("collapsed", "absurd PrivLeak", "disagrees with its log", "corpus looks wrong")


def rescore(*paths: Path, corpus: str = "books", data_dir: Path | None = None, **changes: Any) -> list[Rescored]:
    precision = replace(ASSUMED, **changes)
    return rescored_results.rescore(log_finder.find(paths), catalogue.load_corpus(corpus, data_dir=data_dir), precision)


def of(found: Sequence[Rescored], metric: str) -> Rescored:
    return next(one for one in found if one.log.metric == metric)


def reasons(one: Rescored, word: str) -> list[str]:
    return [flag.reason for flag in one.flags if flag.word == word]


def words(one: Rescored) -> list[str]:
    """Returns flags but the one of synthetic logs, which are shorter than MUSE's."""
    return [flag.word for flag in one.flags if flag.word != "few documents"]


def loop(text: str, times: int) -> str:
    return " ".join([text] * times)


@pytest.fixture(autouse=True)
def no_texts_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "no-cache"))


def test_a_sound_log_has_no_flags(tmp_path: Path) -> None:
    found = rescore(runs.muse_bench(tmp_path / "npo"), data_dir=runs.corpus_texts(tmp_path / "data"))
    assert [one.log.metric for one in found] == list(PRIMARY)
    assert [one.flags for one in found] == [()] * 4
    assert of(found, "privleak").corpus_check.startswith("Corpus checked: 7 of 7 documents are those of books.")


def test_intervals_are_those_of_every_possible_resample(tmp_path: Path) -> None:
    known = (0, 10, 5, 1)
    (one,) = rescore(runs.muse_bench(tmp_path / "npo", known={"knowmem_f": known}))[:1]
    resampled = quantities.resample(one.result, "knowmem_f")
    assert resampled is not None
    found = resampled.estimate()
    means = [
        runs.mean([runs.f1(count) for count in drawn]) for drawn in itertools.product(known, repeat=len(known))
    ]  # fmt: skip
    assert found.value == pytest.approx(runs.mean([runs.f1(count) for count in known]))
    # All 256 resamples of four documents against 10,000 drawn ones: the quantiles are the same few sums.
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=0.06)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=0.06)
    # Four documents say next to nothing, and what is shown says so.
    shown = quantities.estimate(one.result, "knowmem_f")
    assert (shown.low, shown.high) == (0.0, 1.0)


def test_privleak_resamples_forget_and_holdout_texts_apart(tmp_path: Path) -> None:
    one = of(rescore(runs.muse_bench(tmp_path / "npo")), "privleak")
    resampled = quantities.resample(one.result, "privleak")
    assert resampled is not None
    assert resampled.draws.shape == (10_000,)
    assert resampled.value == pytest.approx(100 * (runs.auc(runs.FORGET, runs.HOLDOUT) - BOOKS_AUC) / BOOKS_AUC)
    possible = {
        round(100 * (runs.auc(forget, holdout) - BOOKS_AUC) / BOOKS_AUC, 6)
        for forget in itertools.product(runs.FORGET, repeat=4)
        for holdout in itertools.product(runs.HOLDOUT, repeat=3)
    }
    assert set(np.round(resampled.draws, 6)) <= possible


def test_a_model_that_answers_nothing_right_has_collapsed(tmp_path: Path) -> None:
    nothing = {"knowmem_f": (0, 0, 0, 0), "knowmem_r": (0, 0, 0, 0)}
    folder = runs.muse_bench(tmp_path / "ga", known=nothing)
    for metric in nothing:
        log = [entry | {"response": "sorry no idea"} for entry in runs.entries(metric, nothing[metric])]
        runs.write(folder / metric / "log.json", log)
    found = rescore(folder)
    assert {one.log.metric for one in found if "collapsed" in [flag.word for flag in one.flags]} == {
        "knowmem_f", "knowmem_r", "privleak",
    }  # fmt: skip
    assert reasons(found[0], "collapsed") == [
        "utility is 0.0 of 100 and KnowMem 0.0: a destroyed model forgets everything"
    ]


def test_a_model_that_repeats_itself_has_collapsed_whatever_it_scores(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "ga", summaries=False)
    log = [
        entry | {"response": loop(runs.REFERENCE, 4), "rougeL": None} for entry in runs.entries("knowmem_r", (1,) * 4)
    ]
    runs.write(folder / "knowmem_r" / "log.json", log)
    found = of(rescore(folder), "knowmem_r")
    assert reasons(found, "collapsed") == ["100% of the utility answers are empty or repeat themselves"]
    assert (quantities.stored_value(found.result, "knowmem_r") or 0) > thresholds.LEAST_SCORE


def test_half_of_the_answers_repeated_is_not_yet_a_collapse(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "ga", known={"knowmem_r": (0, 0, 10, 10)})
    assert not reasons(of(rescore(folder), "knowmem_r"), "collapsed")
    folder = runs.muse_bench(tmp_path / "ga", known={"knowmem_r": (0, 0, 0, 10)})
    assert reasons(of(rescore(folder), "knowmem_r"), "collapsed")


def test_a_model_that_still_knows_what_it_should_forget_has_not_collapsed(tmp_path: Path) -> None:
    one = {"knowmem_r": (1, 1, 1, 1), "knowmem_f": (10, 10, 10, 10)}
    folder = runs.muse_bench(tmp_path / "odd", known=one)
    log = [entry | {"response": "sorry no idea", "rougeL": 0} for entry in runs.entries("knowmem_r", (1,) * 4)]
    runs.write(folder / "knowmem_r" / "log.json", log)
    assert not any(flag.word == "collapsed" for flag in of(rescore(folder), "knowmem_r").flags)


def test_without_a_log_of_utility_nothing_is_said_of_a_collapse(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "ga", known={"verbmem_f": (0, 0), "knowmem_f": (0, 0)})
    assert not any(flag.word == "collapsed" for one in rescore(folder) for flag in one.flags)


@pytest.mark.parametrize(
    ("forget", "holdout", "reason"),
    [
        ((9.0, 8.0), (1.0, 2.0), "the AUC is exactly 1: the splits are told apart without one exception"),
        ((3.0, 3.0), (3.0, 3.0), "every text has the same score, so its AUC of 0.5 is no sign of forgetting"),
        ((30.0, 90.0), (60.0, 50.0), "the mean loss on unseen texts is 44.0 nats per token"),
        ((3.0, math.nan), (4.0, 2.0), "1 of 4 texts have no finite score and are left out"),
    ],
)
def test_a_privleak_that_no_healthy_model_has_is_flagged(
    tmp_path: Path, forget: tuple[float, ...], holdout: tuple[float, ...], reason: str
) -> None:
    folder = runs.muse_bench(tmp_path / "m", forget=forget, holdout=holdout, summaries=False)
    found = reasons(of(rescore(folder), "privleak"), "absurd PrivLeak")
    assert any(one.startswith(reason) for one in found), found


def test_full_memorization_is_a_privleak_of_minus_100_and_not_absurd(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "target", forget=(1.0, 2.0), holdout=(3.0, 4.0))
    one = of(rescore(folder), "privleak")
    assert quantities.stored_value(one.result, "privleak") == -100
    assert words(one) == []


def test_a_destroyed_model_with_an_auc_of_exactly_0_is_absurd(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "ga", known={"knowmem_r": (0,)}, forget=(1.0, 2.0), holdout=(3.0, 4.0))
    found = of(rescore(folder), "privleak")
    assert words(found) == ["collapsed", "absurd PrivLeak"]


@pytest.mark.parametrize(("stated", "absurd"), [(5215.5, True), (-100.2, True), (85.4, False), (-100.0, False)])
def test_a_stated_privleak_outside_of_what_an_auc_allows_is_absurd(tmp_path: Path, stated: float, absurd: bool) -> None:
    value = runs.evaluation(privleak={"agg_value": stated})
    one = of(rescore(runs.write(tmp_path / "m" / "MUSE_EVAL.json", value)), "privleak")
    # The most that an AUC of 1 gives: 100 * (1 - 0.5393) / 0.5393 = 85.4.
    found = [reason for reason in reasons(one, "absurd PrivLeak") if f"states {stated:.6g}%" in reason]
    assert bool(found) == absurd
    assert all("more than 85.4%" in reason for reason in found)


def test_a_privleak_with_another_reference_says_which_one_it_implies(tmp_path: Path) -> None:
    one = of(rescore(runs.write(tmp_path / "m" / "MUSE_EVAL.json", runs.evaluation())), "privleak")
    (reason,) = reasons(one, "disagrees with its log")
    assert reason.startswith("the log states PrivLeak -33.3333%, and its scores give -38.19%")
    assert "(a reference AUC of 0.5000 would give it)" in reason


def test_a_log_that_was_edited_disagrees_with_its_own_responses(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "npo")
    log = runs.entries("knowmem_f", runs.KNOWN["knowmem_f"])
    log[1]["rougeL"] = 0.25
    runs.write(folder / "knowmem_f" / "log.json", log)
    runs.write(folder / "verbmem_f" / "agg.json", {"mean_rougeL": 0.01})
    runs.write(folder / "privleak" / "auc.json", {"forget_holdout_Min-40%": 0.5})
    found = rescore(folder)
    assert reasons(of(found, "knowmem_f"), "disagrees with its log") == [
        "1 of 4 entries state another ROUGE-L than their texts give (entry 1: 0.25 stated, 1 recomputed)"
    ]
    mean = 100 * runs.mean([runs.f1(count) for count in runs.KNOWN["verbmem_f"]])
    assert reasons(of(found, "verbmem_f"), "disagrees with its log") == [
        f"the log states 1 as the mean, and its responses give {mean:.4g}"
    ]
    assert reasons(of(found, "privleak"), "disagrees with its log") == [
        "the log states the AUC 0.5, and its scores give 0.3333"
    ]
    assert words(of(found, "knowmem_r")) == []


def test_a_stated_nan_is_a_disagreement(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "npo")
    runs.write(folder / "knowmem_f" / "agg.json", {"mean_rougeL": math.nan})
    found = rescore(folder)
    assert "the log states nan as the mean" in reasons(of(found, "knowmem_f"), "disagrees with its log")[0]
    (row,) = [row for row in rescored_results.rows(found, ()) if row["metric"] == "knowmem_f"]
    assert row["stated"] is None


def test_a_stemmer_is_no_disagreement(tmp_path: Path) -> None:
    value = runs.evaluation()
    part = value["retain_knowmem_ROUGE"]
    part["value_by_index"] = {"0": part["value_by_index"]["0"]}
    part["value_by_index"]["0"] |= {
        "ground_truth": "the dogs were running", "generation": "the dog was running", "rougeL_f1": 0.75
    }  # fmt: skip
    part["agg_value"] = 0.75
    one = of(rescore(runs.write(tmp_path / "m" / "MUSE_EVAL.json", value)), "knowmem_r")
    assert words(one) == []
    assert quantities.stored_value(one.result, "knowmem_r") == 0.5


def test_logs_of_another_corpus_are_flagged_and_unknown_ones_are_not_checked(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "npo")
    (unchecked, *_) = rescore(folder)
    assert unchecked.corpus_check == "Corpus not checked: the texts of books are not at hand."
    mini = rescore(folder, corpus="mini")
    assert {tuple(flag.word for flag in one.flags) for one in mini} == {("corpus looks wrong",)}
    assert reasons(of(mini, "privleak"), "corpus looks wrong") == ["0 of 7 texts are the corpus's"]
    open_log = runs.write(tmp_path / "m" / "MUSE_EVAL.json", runs.evaluation())
    assert of(rescore(open_log), "privleak").corpus_check == "Corpus not checked: the log keeps no texts."


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({}, []),
        ({"known": 9}, []),
        ({"known": 8}, ["corpus looks wrong"]),
        ({"same_prompt": 8}, ["other prompts"]),
        ({"same_reference": 8}, ["other references"]),
        ({"documents": 9, "known": 9}, ["few documents"]),
    ],
)
def test_nine_of_ten_documents_must_be_the_corpus_s(tmp_path: Path, match: dict[str, int], expected: list[str]) -> None:
    log = log_finder.find([runs.muse_bench(tmp_path / "npo")])[0].metrics[1]
    whole = {"documents": 10, "of_corpus": 10, "known": 10, "same_prompt": 10, "same_reference": 9}
    found = corpus_match.CorpusMatch(**(whole | match))
    assert [flag.word for flag in log_flags.documents(log, found, None)] == expected


def sides(forget: int, holdout: int) -> dict[str, Any]:
    """PrivLeak's part of an evaluation of OpenUnlearning, with so many texts on each side."""
    scores = {"forget": forget, "holdout": holdout}
    parts = {side: {"value_by_index": {str(i): {"score": 1.0 + i} for i in range(n)}} for side, n in scores.items()}
    return {"mia_min_k": parts | {"agg_value": 0.5}}


@pytest.mark.parametrize("corpus", ["news", "books", "mini"])
@pytest.mark.parametrize(("forget", "holdout"), [(400, 400), (101, 40), (40, 101)])
def test_more_documents_than_the_corpus_has_are_refused(tmp_path: Path, corpus: str, forget: int, holdout: int) -> None:
    """A log of TOFU whose other metrics were taken out: nothing but numbers tells whose it is."""
    path = runs.write(tmp_path / "m" / "MUSE_EVAL.json", sides(forget, holdout))
    with pytest.raises(InputError, match=rf"{max(forget, holdout) if forget < 400 else 400} (forget|holdout) documents"
                       rf" are logged for privleak, and {corpus} has"):  # fmt: skip
        rescore(path, corpus=corpus)
    many = runs.entries("knowmem_f", (1,) * 101)
    runs.write(tmp_path / "n" / "knowmem_f" / "log.json", many)
    with pytest.raises(InputError, match="101 forget_qa documents"):
        rescore(tmp_path / "n", corpus=corpus)


@pytest.mark.parametrize(("forget", "holdout", "lacking"), [(100, 100, []), (40, 40, ["few documents"])])
def test_fewer_documents_than_the_corpus_has_are_flagged_where_no_text_is_compared(
    tmp_path: Path, forget: int, holdout: int, lacking: list[str]
) -> None:
    path = runs.write(tmp_path / "m" / "MUSE_EVAL.json", sides(forget, holdout))
    (one,) = rescore(path, corpus="news")
    assert [flag.word for flag in one.flags if flag.word == "few documents"] == lacking


def test_rows_are_flat_with_the_keys_of_cells_and_scaled_as_on_pages(tmp_path: Path) -> None:
    runs.muse_bench(tmp_path / "npo")
    runs.write(tmp_path / "ou" / "MUSE_EVAL.json", runs.evaluation(mia_min_k={"agg_value": 0.3}))
    models = log_finder.find([tmp_path])
    rows = rescored_results.rows(rescored_results.rescore(models, catalogue.load_corpus("books"), ASSUMED), models)
    assert len(rows) == 4 + 3 + 1
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    known = 100 * runs.mean([runs.f1(count) for count in runs.KNOWN["knowmem_r"]])
    row = next(row for row in rows if (row["model"], row["metric"]) == ("npo", "knowmem_r"))
    assert row["knowmem_r"] == row["stated"] == pytest.approx(known)
    assert row["knowmem_r_low"] <= known <= row["knowmem_r_high"]
    assert (row["num_docs"], row["origin"], row["task"]) == (4, "rescored from logs", "muse_books_knowmem_r")
    assert rows[-1]["metric"] == "privleak"
    assert "nothing can be recomputed" in rows[-1]["reason"]


def test_a_stored_row_says_what_it_is_and_invents_nothing(tmp_path: Path) -> None:
    one = of(rescore(runs.muse_bench(tmp_path / "GA_GDR.v2")), "privleak")
    result = one.result
    assert (result.submission.name, result.submission.title) == ("ga-gdr-v2", "GA_GDR.v2")
    assert (result.origin, result.status, result.proof) == ("rescored from logs", "finished", None)
    assert result.submission.weights == result.submission.folder == ""
    assert set(result.provenance.versions) <= {"quench-bench", "rouge-score", "numpy"}
    assert str(tmp_path) not in repr(result)
    assert any("16 bit is assumed" in remark for remark in result.remarks)
    stated = of(rescore(tmp_path / "GA_GDR.v2", spec=FP4, stated=True), "privleak").result
    assert any("bnb-fp4 is what the person who rescored it stated" in remark for remark in stated.remarks)
    assert stated.cell.key != result.cell.key


def test_the_key_follows_the_log_and_the_name_but_not_the_time(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "a")
    runs.muse_bench(tmp_path / "b")
    first, again, other = (rescore(path)[0].result.cell.key for path in (folder, folder, tmp_path / "b"))
    assert first == again != other
    runs.write(folder / "verbmem_f" / "log.json", runs.entries("verbmem_f", (1, 1, 1, 1)))
    changed = rescore(folder)
    assert changed[0].result.cell.key != first
    assert changed[1].result.cell.key == rescore(folder)[1].result.cell.key


def test_two_models_of_one_name_and_a_name_of_no_letters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 of the logged models would be called 'a-b'"):
        rescore(runs.muse_bench(tmp_path / "a_b"), runs.muse_bench(tmp_path / "a.b"))
    with pytest.raises(InputError, match="has no letter a-z and no digit"):
        rescore(runs.muse_bench(tmp_path / "___"))


def test_without_a_reference_auc_privleak_is_refused_and_the_rest_is_not(tmp_path: Path) -> None:
    corpus = replace(catalogue.load_corpus("books"), reference_auc=None)
    folder = runs.muse_bench(tmp_path / "npo")
    with pytest.raises(CorpusError, match="no usable reference AUC"):
        rescored_results.rescore(log_finder.find([folder]), corpus, ASSUMED)
    (folder / "privleak" / "log.json").unlink()
    assert len(rescored_results.rescore(log_finder.find([folder]), corpus, ASSUMED)) == 3


def test_a_store_gives_back_what_was_kept_once(tmp_path: Path) -> None:
    found = rescore(runs.muse_bench(tmp_path / "npo"))
    store = tmp_path / "s.duckdb"
    assert rescored_results.keep(found, store) == (4, 0)
    assert rescored_results.keep(rescore(tmp_path / "npo"), store) == (0, 4)
    with Store.open(store, read_only=True) as opened:
        assert opened.cells(with_documents=True) == [one.result for one in found]


def test_a_name_that_was_scored_here_is_not_taken_over(tmp_path: Path) -> None:
    (scored, *_) = synthetic.cells([synthetic.Plan(name="npo", levels=synthetic.FULL)], corpus="books")
    store = tmp_path / "s.duckdb"
    with Store.open(store) as opened:
        opened.add(scored)
    with pytest.raises(InputError, match="holds a submission 'npo' that was scored here"):
        rescored_results.keep(rescore(runs.muse_bench(tmp_path / "npo")), store)
    with Store.open(store, read_only=True) as opened:
        assert len(opened.cells()) == 1


def from_logs(plan: synthetic.Plan) -> list[CellResult]:
    """Cells that would be ranked, had they been scored here."""
    return [replace(cell, origin="rescored from logs", proof=None, survival=()) for cell in synthetic.cells([plan])]


def test_entries_from_logs_are_shown_without_a_rank_and_move_nobody_else_s() -> None:
    scored = synthetic.cells([*synthetic.CONTROLS, synthetic.Plan(name="mine", levels=synthetic.LORA)])
    best = synthetic.Plan(name="theirs", levels=synthetic.RETRAIN, created_at="2027-01-01T00:00:00+00:00")
    alone, both = ranking.rank(scored, "mini"), ranking.rank([*scored, *from_logs(best)], "mini")
    assert (
        {row.submission.name for row in both.ranked(4)} == {row.submission.name for row in alone.ranked(4)} == {"mine"}
    )
    assert both.ranked(4)[0].by_bits == alone.ranked(4)[0].by_bits
    (row,) = both.unranked(4)
    assert row.submission.name == "theirs"
    assert {result.unranked_reason for result in row.by_bits.values()} == {thresholds.FROM_LOGS}
    assert {result.verdict.word for result in row.by_quantizer.values()} == {"not measured"}
    assert row.by_quantizer["reference"].metrics["knowmem_r"].score.value == pytest.approx(0.78, abs=0.1)
    assert both.sentence == alone.sentence


def test_ranked_like_the_rest_the_same_cells_would_have_a_rank() -> None:
    plan = synthetic.Plan(name="theirs", levels=synthetic.RETRAIN)
    board = ranking.rank(synthetic.cells([*synthetic.CONTROLS, plan]), "mini")
    assert [row.submission.name for row in board.ranked(4)] == ["theirs"]


def test_logs_under_a_name_that_was_scored_here_change_nothing() -> None:
    mine = synthetic.Plan(name="mine", levels=synthetic.LORA)
    scored = synthetic.cells([*synthetic.CONTROLS, mine])
    newer = from_logs(replace(mine, levels=synthetic.TARGET, created_at="2027-01-01T00:00:00+00:00"))
    assert ranking.rank([*scored, *newer], "mini").rows == ranking.rank(scored, "mini").rows


def test_logs_of_a_newer_scoring_version_do_not_outdate_what_was_scored_here() -> None:
    scored = synthetic.cells([*synthetic.CONTROLS, synthetic.Plan(name="mine", levels=synthetic.LORA)])
    newer = [
        replace(cell, provenance=replace(cell.provenance, scoring_version=9))
        for cell in from_logs(synthetic.Plan(name="theirs", levels=synthetic.LORA))
    ]
    board = ranking.rank([*scored, *newer], "mini")
    assert board.scoring_version == 1
    assert [row.submission.name for row in board.ranked(4)] == ["mine"]


def test_pages_show_past_evaluations_with_their_flags_and_how_to_repeat_them(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "ga <b>", known={"knowmem_r": (0, 0)})
    rescored_results.keep(rescore(folder, spec=FP4, stated=True), tmp_path / "s.duckdb")
    site = site_pages.render(tmp_path / "s.duckdb", tmp_path / "site").parent
    page = (site / "submission" / "ga-b.html").read_text()
    assert "quench rescore &#39;ga &lt;b&gt;&#39; --corpus books --quantizer bnb-fp4" in page
    assert "quench run" not in page
    assert "rescored from logs: never ranked" in (site / "index.html").read_text()
    cells = (site / "cells.html").read_text()
    assert "Rescored from logs." in cells
    assert "Collapsed: 100% of the utility answers are empty or repeat themselves." in cells


def test_the_site_opens_with_what_was_scored_here(tmp_path: Path, demo_cells: list[CellResult]) -> None:
    past = [one.result for one in rescore(runs.muse_bench(tmp_path / "npo"))]
    assert release.ordered_corpora([*past, demo_cells[0]]) == ["mini", "books"]
    assert release.ordered_corpora(past) == ["books"]


def test_a_terminal_says_the_origin_only_where_it_is_not_the_rule(demo_cells: list[CellResult]) -> None:
    cells = [demo_cells[0], replace(demo_cells[1], origin="rescored from logs")]
    table = table_formats.terminal_table(table_rows.cell_rows(cells), title="")
    origin = next(column for column in table.columns if column.header == "origin")
    assert [str(cell) for cell in origin.cells] == ["", "rescored from logs"]
    plain = table_formats.terminal_table(table_rows.cell_rows(cells[:1]), title="")
    assert "origin" not in [column.header for column in plain.columns]


def test_flags_of_every_word_become_remarks() -> None:
    flags = [log_flags.Flag(word, "so it is") for word in WORDS]  # type: ignore[arg-type]
    assert log_flags.sentences(flags)[0] == "Collapsed: so it is."
    assert log_flags.sentences(flags)[2] == "Disagrees with its log: so it is."
