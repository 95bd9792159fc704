"""Runs that are killed anywhere and started again end with exactly the rows of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from harness.records import CellResult
from harness.run.sweep import spool_of
from harness.store.store import Store

PROGRAM = Path(__file__).with_name("killable_run.py")
NAMES = ",".join(f"entry-{number}" for number in range(6))


def start(store: Path, *more: str, names: str = NAMES) -> subprocess.Popen[str]:
    """Starts the program as the head of a process group of its own, and returns when it has begun."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROGRAM.parent), *sys.path])}
    process = subprocess.Popen([sys.executable, str(PROGRAM), str(store), names, *more], text=True, env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n", process.communicate()[1]
    return process


def finish(store: Path, *more: str, names: str = NAMES, code: int = 0) -> str:
    process = start(store, *more, names=names)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    return errors


def cells(store: Path) -> dict[str, CellResult]:
    with Store.open(store, read_only=True) as opened:
        found = opened.cells(with_documents=True)
    assert len({cell.cell.key for cell in found}) == len(found), "a cell is there twice"
    return {cell.cell.key: cell for cell in found}


def results(store: Path) -> dict[str, Any]:
    """Returns of each cell what must not depend on how often its run was killed."""
    return {key: (cell.status, repr(cell.scores), repr(cell.documents)) for key, cell in cells(store).items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The rows of a run that nobody killed, and the seconds that it took once it had begun."""
    store = tmp_path_factory.mktemp("undisturbed") / "store.duckdb"
    process = start(store)
    began = time.monotonic()
    process.communicate(timeout=300)
    assert process.returncode == 0
    return results(store), time.monotonic() - began


def alive(group: int) -> Iterator[int]:
    """Yields the processes of a session, zombies apart."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == group and state != "Z":
            yield int(entry.name)


def assert_all_gone(group: int, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while left := list(alive(group)):
        assert time.monotonic() < end, f"processes {left} outlived the run"
        time.sleep(0.1)


KILLS = [pytest.param(range(4), id="few"), pytest.param(range(4, 40), id="many", marks=pytest.mark.slow)]
WRITES = [pytest.param((1, 5), id="few"), pytest.param((2, 3, 4, 6, 7, 8, 9, 11), id="many", marks=pytest.mark.slow)]


@pytest.mark.parametrize("numbers", KILLS)
def test_a_run_killed_at_random_points_and_resumed_has_the_rows_of_an_undisturbed_one(
    tmp_path: Path, undisturbed: tuple[dict[str, Any], float], numbers: range
) -> None:
    expected, seconds = undisturbed
    store = tmp_path / "store.duckdb"
    for number in numbers:
        if len(spool_records(store)) == len(expected):
            # All is done: what is killed from here on starts anew.
            finish(store)
            assert results(store) == expected
            store = tmp_path / f"store-{number}.duckdb"
        process = start(store)
        time.sleep(random.Random(number).uniform(0, seconds))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert_all_gone(process.pid)
    finish(store)
    assert results(store) == expected


def spool_records(store: Path) -> list[Path]:
    return list(spool_of(store).glob("*.json"))


@pytest.mark.parametrize("numbers", WRITES)
def test_a_run_killed_inside_a_transaction_and_resumed_has_the_rows_of_an_undisturbed_one(
    tmp_path: Path, undisturbed: tuple[dict[str, Any], float], numbers: tuple[int, ...]
) -> None:
    for number in numbers:
        store = tmp_path / f"store-{number}.duckdb"
        process = start(store, "--die-in-write", str(number))
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, "the run ended before the transaction to die in"
        assert_all_gone(process.pid)
        if store.exists():
            assert set(cells(store)) < set(undisturbed[0])
        finish(store)
        assert results(store) == undisturbed[0]


def test_workers_end_with_a_run_that_is_killed_alone(tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    process = start(store, names="hang,entry-0")
    wait_for_records(store, 2)
    process.kill()
    process.communicate()
    assert_all_gone(process.pid)


def wait_for_records(store: Path, count: int) -> None:
    end = time.monotonic() + 120
    while len(spool_records(store)) < count:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_sigterm_ends_a_run_like_a_second_ctrl_c_and_leaves_no_process(tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    process = start(store, names="hang,entry-0")
    wait_for_records(store, 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert_all_gone(process.pid)
    ended = cells(store)
    assert sorted(cell.status for cell in ended.values()) == ["cancelled", "cancelled", "finished", "finished"]
    assert {cell.reason for cell in ended.values()} == {None, "The run was interrupted while this job ran."}


def test_ctrl_c_once_and_twice_leave_every_cell_in_the_store_once(tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    process = start(store, names="hang,hang-not,entry-0,entry-1,entry-2,entry-3,entry-4,entry-5")
    wait_for_records(store, 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert_all_gone(process.pid)
    assert {cell.status for cell in cells(store).values()} <= {"finished", "cancelled"}
    assert len(cells(store)) == 16


def test_what_goes_wrong_in_one_job_is_a_failed_row_with_its_own_reason_and_the_others_finish(tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    finish(store, "--timeout", "4", "--memory-limit", "512MB", code=1,
           names="segfault,raise,hungry,entry-0,hang,disk-full,scratch-full,entry-1")  # fmt: skip
    by_name: dict[str, list[CellResult]] = {}
    for cell in cells(store).values():
        by_name.setdefault(cell.submission.name, []).append(cell)
    reasons = {name: {cell.reason for cell in found} for name, found in by_name.items()}
    assert reasons.pop("entry-0") == reasons.pop("entry-1") == {None}
    assert "SIGSEGV" in str(reasons["segfault"])
    assert "time limit of 4 s" in str(reasons["hang"])
    assert reasons["raise"] == {"a mistake in the program"}
    assert reasons["hungry"] == {
        "The worker needed more than its 0.5 GB of memory: raise --memory-limit, or run it where there is more."
    }
    assert reasons["scratch-full"] == {"[Errno 28] No space left on device"}
    assert "record can't be written to store.records (File too large)" in str(reasons["disk-full"])
    failed = [cell for name in reasons for cell in by_name[name]]
    assert {cell.status for cell in failed} == {"failed"}
    assert all(cell.error_type for cell in failed)
    assert all((cell.stage or "").startswith("muse_mini") or cell.stage == "store" for cell in failed)
    assert "a mistake in the program" in (by_name["raise"][0].log_tail or "")
    assert "logs/raise--reference.log" in (by_name["raise"][0].log_tail or "")
    assert "MemoryError" in (by_name["hungry"][0].log_tail or "")


def test_a_second_run_on_one_store_names_the_first_and_exits_with_2(tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    first = start(store, names="hang,entry-0")
    wait_for_records(store, 2)
    said = finish(store, code=2)
    assert f"in use by process {first.pid}" in said
    assert "killable_run.py" in said
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=120)
    assert len(cells(store)) == 4


def test_a_record_cut_short_by_a_crash_is_a_cell_to_do(
    tmp_path: Path, undisturbed: tuple[dict[str, Any], float]
) -> None:
    store = tmp_path / "store.duckdb"
    process = start(store, "--die-in-write", "3")
    process.communicate(timeout=120)
    for record in spool_records(store):
        record.write_bytes(record.read_bytes()[:200])
    finish(store)
    assert results(store) == undisturbed[0]
    with duckdb.connect(str(store), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM cells").fetchone() == (len(undisturbed[0]),)
