"""Records of other machines: new ones are stored, and a contradiction changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.records import Score
from harness.store import cell_files, merging, withheld_texts
from harness.store.store import Store


@pytest.fixture
def store(tmp_path: Path, make_cell: Any) -> Path:
    path = tmp_path / "s.duckdb"
    with Store.open(path) as opened:
        opened.add(make_cell())
    return path


def scores(value: float | None, metric: str = "knowmem_f") -> tuple[Score, ...]:
    return (Score(metric=metric, value=value, num_docs=3, missing_reason=None if value is not None else "none"),)


def test_the_same_result_is_known_and_another_cell_is_new(store: Path, tmp_path: Path, make_cell: Any) -> None:
    for result in (make_cell(peak_memory_bytes=1), make_cell("b" * 64)):
        cell_files.write(result, tmp_path / "in")
    assert merging.ingest(store, tmp_path / "in") == merging.Merged(new=1, known=1, conflicts=())
    assert merging.ingest(store, tmp_path / "in") == merging.Merged(new=0, known=2, conflicts=())


@pytest.mark.parametrize("other", [scores(0.5), scores(None), scores(0.25, "verbmem_f"), (), scores(0.25 + 2**-53)])
def test_another_result_of_the_same_cell_is_shown_and_the_first_stays(
    store: Path, tmp_path: Path, make_cell: Any, other: tuple[Score, ...]
) -> None:
    cell_files.write(make_cell(scores=other), tmp_path / "in")
    merged = merging.ingest(store, tmp_path / "in")
    assert (merged.new, merged.known) == (0, 0)
    (row,) = merged.conflicts
    assert (row["submission"], row["key"]) == ("npo-full", "a" * 12)
    assert row["differs"]
    with Store.open(store, read_only=True) as opened:
        assert opened.cells(with_documents=True) == [make_cell()]


def test_a_success_elsewhere_takes_the_place_of_a_failure_here_and_not_the_other_way(
    store: Path, tmp_path: Path, make_cell: Any
) -> None:
    with Store.open(store) as opened:
        opened.add(make_cell("b" * 64, status="failed", reason="Here.", scores=()))
    cell_files.write(make_cell("b" * 64), tmp_path / "in")
    cell_files.write(make_cell(status="failed", reason="There.", scores=()), tmp_path / "in")
    assert merging.ingest(store, tmp_path / "in") == merging.Merged(new=1, known=1, conflicts=())
    with Store.open(store, read_only=True) as opened:
        assert set(opened.keys("finished")) == {"a" * 64, "b" * 64}


def test_another_store_is_a_source_as_good_as_its_records(store: Path, tmp_path: Path, make_cell: Any) -> None:
    assert merging.ingest(tmp_path / "new.duckdb", store) == merging.Merged(new=1, known=0, conflicts=())
    with Store.open(tmp_path / "new.duckdb", read_only=True) as opened:
        assert opened.cells(with_documents=True) == [make_cell()]
    assert merging.ingest(store, store) == merging.Merged(new=0, known=1, conflicts=())


def test_a_file_that_is_no_store_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(StoreError, match=r"x\.json"):
        merging.ingest(tmp_path / "new.duckdb", tmp_path / "x.json")
    assert not (tmp_path / "new.duckdb").exists()


@pytest.mark.parametrize("as_records", [True, False])
def test_a_store_without_texts_holds_every_number_and_no_word_of_them(
    store: Path, tmp_path: Path, make_cell: Any, as_records: bool
) -> None:
    cell_files.write(make_cell(), tmp_path / "in")
    source = tmp_path / "in" if as_records else store
    merging.ingest(tmp_path / "closed.duckdb", source, texts=False)
    with Store.open(tmp_path / "closed.duckdb", read_only=True) as opened:
        (found,) = opened.cells(with_documents=True)
    told = make_cell()
    assert replace(found, documents=()) == replace(told, documents=())
    assert any(document.response for document in told.documents)
    raw = (tmp_path / "closed.duckdb").read_bytes()
    for closed, document in zip(found.documents, told.documents, strict=True):
        assert replace(document, prompt_excerpt="", response=closed.response, reference_excerpt="") == closed
        assert bool(closed.response) == bool(document.response)
        for text in (document.prompt_excerpt, document.response, document.reference_excerpt):
            assert len(text) < 4 or text.encode() not in raw


def test_equal_answers_stay_equal_and_withholding_twice_changes_nothing(make_cell: Any) -> None:
    documents = make_cell().documents
    cell = make_cell(documents=tuple(replace(d, response=answer) for d, answer in zip(documents, "aab", strict=False)))
    once = withheld_texts.without_texts(cell)
    answers = [document.response for document in once.documents]
    assert answers[0] == answers[1]
    assert len(set(answers)) == len({document.response for document in cell.documents})
    assert withheld_texts.without_texts(once) == once
