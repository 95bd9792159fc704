"""Workers behind the fence: what they may not touch is refused by the kernel, and rows say why."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs_without_models import make_job, make_submission

import harness
from harness.errors import first_line
from harness.records import CellResult, Job, Submission
from harness.run.executors import local
from harness.run.job import Settings, unfinished
from harness.run.sandbox import fence
from harness.run.sandbox import network as network_fence

Emit = Callable[[CellResult], None]

LANDLOCK_ABI, HAS_SECCOMP = fence._abilities()
needs_landlock = pytest.mark.skipif(not LANDLOCK_ABI, reason="no Landlock here, or landlockpy is not installed")
needs_seccomp = pytest.mark.skipif(not HAS_SECCOMP, reason="no seccomp here, or pyseccomp is not installed")


def outcomes(
    tmp_path: Path, work: local.Work, job: Job | None = None, submissions: dict[str, Submission] | None = None,
    **settings: Any,
) -> list[CellResult]:  # fmt: skip
    """Returns how a job's cells ended whose worker did ``work`` behind the fence, in the order of the tasks."""
    job = job or make_job()
    ended: dict[str, CellResult] = {}

    def take(event: local.Event) -> None:
        if event.result is not None:
            ended[event.result.cell.key] = event.result

    (tmp_path / "cache").mkdir(exist_ok=True)
    told = Settings(cache=str(tmp_path / "cache"), **settings)
    local.run([job], submissions or {}, told, workers=1, spool=tmp_path / "spool", on_event=take, work=work)
    return [ended[cell.key] for cell in job.cells]


def attempt(job: Job, emit: Emit, deed: Callable[[], object]) -> None:
    """Does something as ``run_job`` would: what goes wrong is the reason of every cell, else they finish."""
    try:
        told, status, error = str(deed()), "finished", None
    except Exception as failed:
        told, status, error = first_line(failed), "failed", type(failed).__name__
    for cell in job.cells:
        emit(unfinished(job, cell, status, told, error=error))  # type: ignore[arg-type]


def swallow(deed: Callable[[], object]) -> None:
    """Does something as a library would that takes every error for "then not"."""
    try:
        deed()
    except BaseException:
        return


REACHES: dict[str, Callable[[], object]] = {
    "connect": lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
    "open": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "open-6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "datagram": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
    "connect-ex": lambda: socket.socket().connect_ex(("192.0.2.1", 443)),
    "name": lambda: socket.getaddrinfo("example.org", 443),
    "old-name": lambda: socket.gethostbyname("example.org"),
    "asyncio": lambda: __import__("asyncio").run(
        __import__("asyncio").wait_for(__import__("asyncio").open_connection("192.0.2.1", 443), 1)
    ),
    "http": lambda: __import__("urllib.request").request.urlopen("http://192.0.2.1/", timeout=1),
}


def reach(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    emit(unfinished(job, job.cells[0], "finished", "no reason"))
    swallow(REACHES[job.submission.name])
    emit(unfinished(job, job.cells[1], "finished", "no reason"))


@pytest.mark.parametrize("name", REACHES)
def test_a_worker_that_reaches_out_is_stopped_whatever_its_code_catches(tmp_path: Path, name: str) -> None:
    done, stopped = outcomes(tmp_path, reach, make_job(name))
    assert done.status == "finished"
    assert stopped.status == "failed"
    assert stopped.error_type == "NetworkError"
    assert (stopped.reason or "").startswith("A worker tried to ")
    assert (stopped.reason or "").endswith("but scoring runs without network.")
    assert (stopped.reason or "none")[1:] in (stopped.log_tail or "")


def reach_from_c(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    ctypes.CDLL(None).socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    emit(unfinished(job, job.cells[0], "finished", "no reason"))


@needs_seccomp
def test_code_that_is_not_python_s_is_stopped_by_the_kernel_with_a_reason(tmp_path: Path) -> None:
    for result in outcomes(tmp_path, reach_from_c):
        assert result.status == "failed"
        assert result.error_type == "NetworkError"
        assert "tried to open a network socket" in (result.reason or "")


def reach_from_a_child(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    code = "import socket; socket.socket(); print('open')"
    attempt(job, emit, lambda: subprocess.run([sys.executable, "-c", code], capture_output=True).returncode)


@needs_seccomp
def test_a_process_that_a_worker_starts_has_no_network_either(tmp_path: Path) -> None:
    assert {result.reason for result in outcomes(tmp_path, reach_from_a_child)} == {"-31"}


def other_families(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    def deed() -> str:
        left, right = socket.socketpair()
        left.send(b"still here")
        return right.recv(20).decode()

    attempt(job, emit, deed)


def test_processes_of_this_machine_can_still_talk_to_each_other(tmp_path: Path) -> None:
    assert {result.reason for result in outcomes(tmp_path, other_families)} == {"still here"}


def read_what_the_folder_names(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    attempt(job, emit, lambda: Path(job.submission.weights).read_text(encoding="utf-8"))


@needs_landlock
def test_a_file_outside_the_inputs_can_t_be_read_and_the_row_says_so(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("nobody's business", encoding="utf-8")
    mine = tmp_path / "submissions" / "some-entry"
    mine.mkdir(parents=True)
    job = replace(make_job(), submission=make_submission(folder=str(mine)))
    job = replace(job, submission=replace(job.submission, weights=str(secret)))
    for result in outcomes(tmp_path, read_what_the_folder_names, job):
        assert result.status == "failed"
        assert result.error_type == "FenceError"
        assert (result.reason or "").startswith(f"The fence refused {secret}: a worker reads its submission")


@needs_landlock
def test_a_link_out_of_the_inputs_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("nobody's business", encoding="utf-8")
    mine = tmp_path / "submissions" / "some-entry"
    mine.mkdir(parents=True)
    (mine / "weights").symlink_to(tmp_path / "secret.txt")
    job = replace(make_job(), submission=make_submission(folder=str(mine)))
    assert {result.error_type for result in outcomes(tmp_path, read_what_the_folder_names, job)} == {"FenceError"}


@pytest.mark.parametrize("whose", ["own", "target", "base", "base-of-target"])
def test_a_worker_reads_its_submission_its_target_and_their_bases(tmp_path: Path, whose: str) -> None:
    folders = {name: tmp_path / "submissions" / name for name in ("own", "target", "base", "base-of-target", "other")}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        (folder / "weights").write_text(name, encoding="utf-8")
    bases = {"own": "base", "target": "base-of-target"}
    known = {
        name: make_submission(name, folder=str(folder), base_model=bases.get(name),
                              target="target" if name == "own" else None)
        for name, folder in folders.items()
    }  # fmt: skip
    told = replace(known["own"], weights=str(folders[whose] / "weights"))
    results = outcomes(tmp_path, read_what_the_folder_names, replace(make_job(), submission=told), known)
    assert {result.reason for result in results} == {whose}
    if LANDLOCK_ABI:
        told = replace(known["own"], weights=str(folders["other"] / "weights"))
        results = outcomes(tmp_path, read_what_the_folder_names, replace(make_job(), submission=told), known)
        assert {result.error_type for result in results} == {"FenceError"}


READ_CORPORA = """
import os, sys
from pathlib import Path
from jobs_without_models import make_job
from harness.run.job import Settings
from harness.run.sandbox import fence
from harness.score.corpora import catalogue
folder = Path(sys.argv[1])
(folder / "spool" / "logs").mkdir(parents=True)
fence.enter(make_job(), {}, Settings(cache=str(folder / "cache")), folder / "spool" / "logs" / "log")
print(len(catalogue.load_split(catalogue.load_corpus("letters"), "raw", "forget")))
print((folder / "corpora" / "diary.txt").read_text())
"""


@pytest.mark.parametrize("names", ["the folder of several", "each folder"])
def test_a_worker_reads_the_corpora_that_the_variable_names_and_nothing_beside_them(tmp_path: Path, names: str) -> None:
    parent = tmp_path / "corpora"
    root = Path(harness.__file__).parents[1]
    shutil.copytree(root / "docs" / "extending" / "quench_example" / "muse_letters", parent / "muse_letters")
    (parent / "diary.txt").write_text("dear diary", encoding="utf-8")
    named = parent if names == "the folder of several" else parent / "muse_letters"
    done = subprocess.run(
        [sys.executable, "-c", READ_CORPORA, str(tmp_path)], capture_output=True, text=True,
        env={**os.environ, "QUENCH_CORPORA": str(named), "QUENCH_CACHE": str(tmp_path / "cache"),
             "PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parents[1])])},
    )  # fmt: skip
    assert int(done.stdout.split()[0]) > 0, done.stderr
    assert ("dear diary" in done.stdout) is not bool(LANDLOCK_ABI)
    if LANDLOCK_ABI:
        assert "Permission denied" in done.stderr


def write_beside(job: Job, submissions: object, settings: Settings, *, emit: Emit, on_stage: object) -> None:
    places = {
        "own folder": Path(job.submission.folder) / "new", "home": Path.home() / ".quench-fence-test",
        "cache": Path(settings.cache) / "new", "temporary": Path(tempfile.gettempdir()) / "new",
    }  # fmt: skip
    written = []
    for name, path in places.items():
        try:
            path.write_text("x", encoding="utf-8")
            written.append(name)
        except PermissionError:
            continue
    attempt(job, emit, lambda: ", ".join(written))


@needs_landlock
def test_a_worker_writes_to_the_cache_and_its_own_temporary_folder_alone(tmp_path: Path) -> None:
    mine = tmp_path / "submissions" / "some-entry"
    mine.mkdir(parents=True)
    job = replace(make_job(), submission=make_submission(folder=str(mine)))
    assert {result.reason for result in outcomes(tmp_path, write_beside, job)} == {"cache, temporary"}
    assert not list(tmp_path.rglob("*.tmp")), "what a worker left is removed"
    assert list(mine.iterdir()) == []


def name_a_thread(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    names: list[str] = []

    def rename() -> None:
        comm = Path(f"/proc/self/task/{threading.get_native_id()}/comm")
        comm.write_text("cuda", encoding="ascii")
        names.append(comm.read_text(encoding="ascii").strip())

    def deed() -> str:
        thread = threading.Thread(target=rename)
        thread.start()
        thread.join()
        return names[0]

    attempt(job, emit, deed)


@needs_landlock
def test_a_worker_may_name_its_own_threads_as_cuda_does_when_it_starts(tmp_path: Path) -> None:
    assert {result.reason for result in outcomes(tmp_path, name_a_thread)} == {"cuda"}


def touch_the_run(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    attempt(job, emit, lambda: Path(f"/proc/{os.getppid()}/comm").write_text("x", encoding="ascii"))


@needs_landlock
def test_a_worker_may_name_no_thread_of_another_process(tmp_path: Path) -> None:
    assert {result.error_type for result in outcomes(tmp_path, touch_the_run)} == {"PermissionError"}


def kill_the_parent(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    attempt(job, emit, lambda: os.kill(os.getppid(), 0))


@pytest.mark.skipif(LANDLOCK_ABI < 6, reason="this Landlock knows no scopes")
def test_a_worker_can_send_no_signal_out(tmp_path: Path) -> None:
    assert {result.status for result in outcomes(tmp_path, kill_the_parent)} == {"failed"}


def tell_limits(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    kinds = (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
    attempt(job, emit, lambda: " ".join(str(resource.getrlimit(kind)[0]) for kind in kinds))


def test_a_worker_dumps_no_core_and_writes_no_file_larger_than_the_cache(tmp_path: Path) -> None:
    reasons = {result.reason for result in outcomes(tmp_path, tell_limits, cache_limit=1 << 40)}
    core, size, files = map(int, reasons.pop().split())  # type: ignore[union-attr]
    assert core == 0
    assert size == 1 << 40
    assert 0 < files <= 8192


def take_two_gigabytes(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    fence.limit_memory(1 << 30)
    attempt(job, emit, lambda: len(bytearray(1 << 31)))


def take_it_as_numbers(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    import torch

    fence.limit_memory(1 << 30)
    attempt(job, emit, lambda: torch.ones(1 << 29))


@pytest.mark.parametrize("work", [take_two_gigabytes, take_it_as_numbers])
def test_a_worker_past_its_memory_limit_says_so_in_a_sentence(tmp_path: Path, work: local.Work) -> None:
    for result in outcomes(tmp_path, work):
        assert result.error_type == "MemoryError", (result.reason, result.log_tail)
        assert result.reason == (
            "The worker needed more than its 1 GB of memory: raise --memory-limit, or run it where there is more."
        )


def finish(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    attempt(job, emit, lambda: "nothing")


def test_every_row_tells_which_fence_it_was_made_behind(tmp_path: Path) -> None:
    expected = [f"landlock {LANDLOCK_ABI}"] * bool(LANDLOCK_ABI) + ["seccomp"] * HAS_SECCOMP
    for result in outcomes(tmp_path, finish):
        assert result.provenance.versions["fence"] == (" + ".join(expected) or "none")
        assert result.reason == "nothing"


def test_the_fence_is_described_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "_abilities", lambda: (7, True))
    assert fence.describe() == "Kernel fence: Landlock ABI 7 (files, TCP), seccomp (sockets)."
    monkeypatch.setattr(fence, "_abilities", lambda: (3, False))
    assert fence.describe() == "Kernel fence: Landlock ABI 3 (files)."
    monkeypatch.setattr(fence, "_abilities", lambda: (0, False))
    assert fence.describe().startswith("Kernel fence: not available here")
    monkeypatch.setenv(fence.SWITCH, "off")
    assert fence.describe().startswith("Kernel fence: off, because QUENCH_FENCE says so")


def test_the_switch_turns_the_kernel_s_part_off_and_another_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fence.SWITCH, "off")
    assert fence._abilities() == (0, False)
    monkeypatch.delenv(fence.SWITCH)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert fence._abilities() == (0, False)


def test_missing_libraries_are_no_fence_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "landlockpy", None)
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    assert fence._abilities() == (0, False)


def test_an_ordinary_refusal_inside_the_inputs_keeps_its_own_words(tmp_path: Path) -> None:
    behind = fence.Fence(readable=(tmp_path,), writable=(), devices=(), kernel="landlock 7")
    job = make_job()
    told = f"[Errno 13] Permission denied: '{tmp_path / 'weights'}'"
    row = unfinished(job, job.cells[0], "failed", told, error="PermissionError")
    assert behind.complete(row).reason == told
    elsewhere = replace(row, reason="[Errno 13] Permission denied: '/etc/shadow'")
    assert (behind.complete(elsewhere).reason or "").startswith("The fence refused /etc/shadow")
    assert replace(behind, kernel="").complete(elsewhere).reason == elsewhere.reason


def test_an_exit_that_nobody_stopped_has_no_reason_of_the_fence_s(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Stopped by the fence: a worker tried to dance.\n", encoding="utf-8")
    assert network_fence.why_stopped(0, log) is None
    assert network_fence.why_stopped(-9, log) is None
    assert network_fence.why_stopped(None, log) is None
    assert network_fence.why_stopped(119, log) == "A worker tried to dance."
    log.write_text("", encoding="utf-8")
    assert network_fence.why_stopped(119, log) == "A worker reached for the network."


def test_a_folder_of_temporary_files_is_cleared_though_its_worker_was_killed(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "entry--rtn.log"
    left = log.with_suffix(".tmp") / "deep"
    left.mkdir(parents=True)
    fence.clear(log)
    assert not left.parent.exists()
    fence.clear(log)


@pytest.mark.parametrize("below", ["", "bin"])
def test_a_library_that_a_variable_or_the_path_names_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    place = tmp_path / below
    (place / "llama-quantize").parent.mkdir(exist_ok=True)
    (place / "llama-quantize").write_text("#!/bin/sh\n", encoding="utf-8")
    (place / "llama-quantize").chmod(0o755)
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setenv("QUENCH_GGML", str(tmp_path / "lib" / "libggml-base.so"))
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/somewhere{os.pathsep}")
    found = {str(each) for each in fence._software()}
    assert {str(place), str(tmp_path / "lib"), "/somewhere"} <= found
    assert "" not in found


def test_a_checkout_on_the_path_is_not_readable_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(harness.__file__).resolve().parent
    monkeypatch.setattr(sys, "path", [str(package.parent), "", *sys.path])
    found = {Path(each).resolve() for each in fence._software()}
    assert package in found
    assert package.parent not in found
