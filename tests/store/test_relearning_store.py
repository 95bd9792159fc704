"""Relearning probes in the store: kept to the last bit, replaced by their key, unknown to older stores."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from harness.errors import StoreError
from harness.store.relearning import Relearning, RelearningStep
from harness.store.store import Store

PROBE = Relearning(
    key="a" * 64, submission="npo-full", weights_sha256="d" * 64, target="mini-target", corpus="mini",
    quantizer="rtn-4bit-g64", recipe_sha256="e" * 64, documents=16, goal=0.1 + 0.2, half_step=15, reason=None,
    curve=(
        RelearningStep(step=0, verbmem=1 / 3, extraction_strength=0.17, reference_nll=0.335, verbmem_shown=0.322),
        RelearningStep(step=5, verbmem=2 / 3, extraction_strength=None, reference_nll=None, verbmem_shown=0.491),
    ),
    device="cpu", seconds=31.25, created_at="2026-11-27T04:24:07+00:00",
)  # fmt: skip


def test_a_new_store_has_no_probes(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.duckdb") as store:
        assert store.relearnings() == []


def test_a_probe_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    without = replace(PROBE, key="b" * 64, half_step=None, reason="not within 5 steps", quantizer="reference")
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add_relearning(PROBE)
        store.add_relearning(without)
    with Store.open(tmp_path / "s.duckdb", read_only=True) as store:
        assert store.relearnings() == [without, PROBE]


def test_a_probe_of_the_same_key_is_replaced(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add_relearning(PROBE)
        store.add_relearning(replace(PROBE, half_step=10))
        assert [probe.half_step for probe in store.relearnings()] == [10]


def test_a_number_that_is_none_is_refused_and_what_was_there_stays(tmp_path: Path) -> None:
    broken = replace(PROBE, curve=(replace(PROBE.curve[0], verbmem=math.nan),))
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add_relearning(PROBE)
        with pytest.raises(ValueError, match="JSON"):
            store.add_relearning(broken)
        assert store.relearnings() == [PROBE]


def test_probes_leave_the_cells_alone(tmp_path: Path, make_cell: Any) -> None:
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add(make_cell())
        store.add_relearning(PROBE)
        assert store.cells(with_documents=True) == [make_cell()]


def test_a_store_from_before_the_probe_is_given_its_table_and_keeps_its_cells(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    with Store.open(path) as store:
        store.add(make_cell())
    with duckdb.connect(str(path)) as connection:
        connection.execute("DROP TABLE relearning")
        connection.execute("DELETE FROM schema_version WHERE script LIKE '%relearning%'")
    with pytest.raises(StoreError, match="bring it up to date first"):
        Store.open(path, read_only=True)
    with Store.open(path) as store:
        store.add_relearning(PROBE)
        assert store.relearnings() == [PROBE]
        assert store.cells(with_documents=True) == [make_cell()]
