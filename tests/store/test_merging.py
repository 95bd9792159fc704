"""Records of other machines: new ones are stored, and a contradiction changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.records import Score
from harness.store import cell_files, merging
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
