from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.records import Score
from harness.store import cell_files


def test_a_record_is_one_json_document_that_names_its_schema_first(tmp_path: Path, make_cell: Any) -> None:
    path = cell_files.write(make_cell(), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / f"{'a' * 64}.json"
    body = json.loads(path.read_text())
    assert next(iter(body)) == "schema"
    assert body["schema"] == "quench.cell/1"
    assert body["cell"]["submission"] == "npo-full"
    assert cell_files.read(path) == make_cell()


def test_the_same_record_has_the_same_bytes(tmp_path: Path, make_cell: Any) -> None:
    one = cell_files.write(make_cell(), tmp_path / "1").read_bytes()
    assert one == cell_files.write(make_cell(), tmp_path / "2").read_bytes()


def test_a_crash_while_writing_leaves_the_old_record_and_no_litter(
    tmp_path: Path, make_cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cell_files.write(make_cell(), tmp_path)
    before = path.read_bytes()

    def crash(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cell_files.os, "fsync", crash)
    with pytest.raises(OSError, match="No space"):
        cell_files.write(make_cell(reason="changed"), tmp_path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_nan_never_reaches_a_file(tmp_path: Path, make_cell: Any) -> None:
    with pytest.raises(StoreError, match=r"scores\[knowmem_f\]"):
        cell_files.write(
            make_cell(scores=(Score(metric="knowmem_f", value=float("nan"), num_docs=1),)), tmp_path / "records"
        )
    assert not (tmp_path / "records").exists()


def test_nan_in_a_file_is_refused(tmp_path: Path, make_cell: Any) -> None:
    path = cell_files.write(make_cell(), tmp_path)
    path.write_text(path.read_text().replace('"value":0.25', '"value":NaN'))
    with pytest.raises(StoreError, match="holds NaN"):
        cell_files.read(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"quench.cell/1"', '"quench.cell/2"', "schema is not"),
        ('"num_docs":3', '"num_docs":"3"', "field scores.0.num_docs"),
        ('"status":"finished"', '"status":"splendid"', "field status"),
        ('"corpus":"mini","status"', '"status"', "field corpus"),
        ('{"schema"', '[{"schema"', "is no cell record"),
    ],
)
def test_a_damaged_record_is_refused_with_the_place(
    tmp_path: Path, make_cell: Any, old: str, new: str, said: str
) -> None:
    path = cell_files.write(make_cell(), tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(StoreError, match=said) as caught:
        cell_files.read(path)
    assert str(path) in str(caught.value)


def test_a_truncated_or_absent_record_is_one_sentence(tmp_path: Path, make_cell: Any) -> None:
    path = cell_files.write(make_cell(), tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(StoreError, match="is no cell record"):
        cell_files.read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match="is no cell record"):
        cell_files.read(path)
    with pytest.raises(StoreError, match="can't be read"):
        cell_files.read(tmp_path / "none.json")


def test_deeply_nested_json_is_refused_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(StoreError, match="is no cell record"):
        cell_files.read(path)


@pytest.mark.parametrize("key", ["../escape", "a/b", "", ".", "x" * 129])
def test_a_key_that_is_no_file_name_is_refused(tmp_path: Path, make_cell: Any, key: str) -> None:
    result = make_cell()
    with pytest.raises(StoreError, match="no file name"):
        cell_files.write(replace(result, cell=replace(result.cell, key=key)), tmp_path / "in")
    assert list(tmp_path.iterdir()) == []


def test_half_a_surrogate_pair_is_refused_before_anything_is_written(tmp_path: Path, make_cell: Any) -> None:
    with pytest.raises(StoreError, match="surrogate"):
        cell_files.write(make_cell(reason="\ud83d"), tmp_path / "in")
    assert list(tmp_path.iterdir()) == []


def test_a_record_from_before_origins_were_kept_was_scored(tmp_path: Path, make_cell: Any) -> None:
    path = cell_files.write(make_cell(), tmp_path)
    body = json.loads(path.read_text())
    assert body.pop("origin") == "scored"
    path.write_text(json.dumps(body))
    assert cell_files.read(path) == make_cell()


def test_a_record_keeps_that_it_was_rescored_from_logs_and_no_other_word(tmp_path: Path, make_cell: Any) -> None:
    rescored = make_cell(origin="rescored from logs")
    path = cell_files.write(rescored, tmp_path)
    assert cell_files.read(path) == rescored
    path.write_text(path.read_text().replace("rescored from logs", "ranked"))
    with pytest.raises(StoreError, match="field origin"):
        cell_files.read(path)
