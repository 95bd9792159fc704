"""`quench rescore`: past evaluations from logs to tables, JSON and stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import logged_runs as runs
import pytest
from typer.testing import CliRunner, Result

from harness.cli.main import app
from harness.store.store import Store


@pytest.fixture(autouse=True)
def no_texts_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.setattr("harness.score.corpora.files._fetch", lambda *_: pytest.fail("the hub was asked"))


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Two models of muse_bench and one of OpenUnlearning in one folder."""
    folder = tmp_path / "logs"
    runs.muse_bench(folder / "npo_gdr")
    runs.muse_bench(folder / "ga", known=dict.fromkeys(runs.KNOWN, (0, 0, 0, 0)), forget=(30.0, 90.0), holdout=(60.0,))
    runs.write(folder / "simnpo" / "evals" / "MUSE_EVAL.json", runs.evaluation())
    return folder


def rescore(*arguments: str | Path, corpus: str = "books", code: int = 0) -> Result:
    given = ["rescore", *map(str, arguments), "--corpus", corpus]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "160"})
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.stdout.count("\n") == 1
    document = json.loads(result.stdout)
    assert document["schema"] == "quench.rescore/1"
    return list(document["rows"])


def test_json_holds_every_metric_of_every_model_with_exact_figures(logs: Path) -> None:
    result = rescore(logs, "--json")
    assert result.stderr == ""
    found = {(row["model"], row["metric"]): row for row in rows(result)}
    assert len(found) == 12
    for model in ("npo_gdr", "simnpo"):
        for metric, known in runs.KNOWN.items():
            row = found[model, metric]
            assert row[metric] == pytest.approx(100 * runs.mean([runs.f1(count) for count in known]), abs=1e-9)
            assert row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"]
            assert (row["num_docs"], row["quantizer"], row["origin"]) == (4, "reference", "rescored from logs")
            assert row["stated"] == pytest.approx(row[metric])
        share = 100 * (runs.auc(runs.FORGET, runs.HOLDOUT) - 0.5393) / 0.5393
        assert found[model, "privleak"]["privleak"] == pytest.approx(share, abs=1e-9)
        assert found[model, "privleak"]["auc"] == pytest.approx(100 * runs.auc(runs.FORGET, runs.HOLDOUT))
    few = "few documents"
    assert found["npo_gdr", "knowmem_f"]["flags"] == [few]
    assert found["simnpo", "privleak"]["flags"] == ["disagrees with its log", few]
    assert found["ga", "knowmem_f"]["flags"] == ["collapsed", few]
    assert found["ga", "privleak"]["flags"] == ["collapsed", "absurd PrivLeak", few]


def test_news_and_books_have_references_of_their_own(logs: Path) -> None:
    books, news = (
        next(row for row in rows(rescore(logs / "npo_gdr", "--json", corpus=corpus)) if row["metric"] == "privleak")
        for corpus in ("books", "news")
    )
    assert books["auc"] == news["auc"]
    assert books["privleak"] == pytest.approx(100 * (1 / 3 - 0.5393) / 0.5393)
    assert news["privleak"] == pytest.approx(100 * (1 / 3 - 0.4772) / 0.4772)


def test_the_table_has_intervals_flags_and_each_reason_once(logs: Path) -> None:
    text = rescore(logs).stdout
    assert "Rescored from logs, books" in text
    line = next(line for line in text.splitlines() if line.strip().startswith("npo_gdr") and "knowmem_r" in line)
    mean = 100 * runs.mean([runs.f1(count) for count in runs.KNOWN["knowmem_r"]])
    assert f"{mean:.1f} [" in line
    assert text.count("100% of the utility answers are empty or repeat themselves") == 1
    assert "ga privleak: absurd PrivLeak, the mean loss on unseen texts is 48.0 nats per token" in " ".join(
        text.split()
    )


def test_the_texts_of_the_corpus_are_compared_where_they_are_given(logs: Path, tmp_path: Path) -> None:
    data = runs.corpus_texts(tmp_path / "data")
    checked = rows(rescore(logs / "npo_gdr", "--data-dir", data, "--json"))
    assert {row["corpus_check"].split(".")[0] for row in checked} == {
        "Corpus checked: 4 of 4 documents are those of books", "Corpus checked: 7 of 7 documents are those of books",
    }  # fmt: skip
    assert all(row["flags"] == [] for row in checked)
    wrong = rows(rescore(logs / "npo_gdr", "--json", corpus="mini"))
    assert {tuple(row["flags"]) for row in wrong} == {("corpus looks wrong",)}


def test_rows_are_stored_marked_and_without_a_rank(logs: Path, tmp_path: Path) -> None:
    store = tmp_path / "past.duckdb"
    first = rescore(logs / "npo_gdr", "--quantizer", "bnb-fp4", "--store", store)
    assert "4 new, 0 known already" in first.stderr
    assert "0 new, 4 known already" in rescore(logs / "npo_gdr", "--quantizer", "bnb-fp4", "--store", store).stderr
    with Store.open(store, read_only=True) as opened:
        cells = opened.cells()
    assert {(cell.origin, cell.cell.quantizer, cell.submission.name) for cell in cells} == {
        ("rescored from logs", "bnb-fp4", "npo-gdr")
    }
    shown = CliRunner().invoke(app, ["show", "--store", str(store), "--json"])
    (row,) = json.loads(shown.stdout)["rows"]
    assert row["rank"] is None
    assert row["unranked_reason"].startswith("rescored from logs")
    listed = CliRunner().invoke(app, ["show", "--cells", "--store", str(store), "--json"])
    assert {row["origin"] for row in json.loads(listed.stdout)["rows"]} == {"rescored from logs"}


def test_nothing_is_stored_when_one_log_is_malformed(logs: Path, tmp_path: Path) -> None:
    path = logs / "npo_gdr" / "knowmem_f" / "log.json"
    log = json.loads(path.read_text())
    del log[3]["response"]
    runs.write(path, log)
    result = rescore(logs, "--store", tmp_path / "past.duckdb", code=2)
    assert result.stderr == "Error: npo_gdr/knowmem_f/log.json, entry 3: 'response' must be a text, and is missing.\n"
    assert result.stdout == ""
    assert not (tmp_path / "past.duckdb").exists()


@pytest.mark.parametrize(
    ("arguments", "corpus", "sentence"),
    [
        (("absent",), "books", "There is no file or folder absent"),
        ((".",), "boks", "There is no corpus named 'boks': did you mean books?"),
        ((".", "--quantizer", "bnb-fp5"), "books", "There is no quantizer named 'bnb-fp5'"),
        ((".",), "books", "holds no log: give a folder with"),
        ((".", "--data-dir", "nowhere"), "books", "The data folder nowhere does not exist"),
    ],
)
def test_what_can_not_be_used_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], corpus: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = rescore(*arguments, corpus=corpus, code=2)
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_corpus_has_to_be_named(logs: Path) -> None:
    result = CliRunner().invoke(app, ["rescore", str(logs)])
    assert result.exit_code == 2
    assert "--corpus" in result.stderr


def test_names_with_markup_and_escapes_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    runs.muse_bench(tmp_path / "logs" / "a[red]\x1b[31mb", known={"knowmem_r": (0,)})
    text = rescore(tmp_path / "logs").stdout
    assert "\x1b" not in text
    assert "a[red]" in text
