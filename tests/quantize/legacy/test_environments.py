"""Environments of their own: how they are made, found and asked; a worker outlives neither its time nor its parent."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
from filelock import FileLock

from harness.errors import InputError, QuantizationError, UnknownNameError
from harness.quantize.legacy import environments
from harness.quantize.legacy import worker as legacy_worker
from harness.quantize.legacy.environments import Environment

WORKER = Path(legacy_worker.__file__)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Steps:
    """Takes the place of running commands: keeps them, and has the first leave an interpreter behind."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.fails_at: int | None = None

    def __call__(self, command: Sequence[str], kept: IO[str], log: Path, on_line: Callable[[str], None]) -> None:
        self.commands.append(list(command))
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.symlink_to(sys.executable)
        on_line(f"step {len(self.commands)}")
        kept.write(f"step {len(self.commands)}\n")
        if self.fails_at == len(self.commands):
            raise QuantizationError("It failed.")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    told = Steps()
    monkeypatch.setattr(environments, "_follow", told)
    return told


def _silent(line: str) -> None:
    pass


def test_every_requirement_is_pinned_with_torch_first_and_the_old_libraries_last() -> None:
    pins = environments.pins()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert pins[0].startswith("torch==")
    assert [pin.split("==")[0] for pin in pins[-2:]] == list(environments.LIBRARIES.values())
    names = [pin.split("==")[0].lower().replace("_", "-") for pin in pins]
    assert len(set(names)) == len(names)
    assert {"transformers", "accelerate", "tokenizers", "setuptools", "wheel"} <= set(names)


def test_what_is_not_made_is_not_there_and_asking_makes_nothing_but_the_cache(cache: Path) -> None:
    assert environments.installed("autogptq") is None
    assert environments.installed("autoawq") is None
    assert list(cache.iterdir()) == []


def test_asking_loads_no_library_and_starts_no_process() -> None:
    code = (
        "import sys, subprocess; from harness.quantize.legacy import environments; subprocess.Popen = None;"
        "environments.installed('autogptq'); from harness import quantize;"
        "specs = [s for s in quantize.presets() if s.backend in environments.LIBRARIES]; assert len(specs) == 7;"
        "told = [quantize.backend_of(s).unavailable_reason(s, 'cpu') for s in specs]; assert all(told), told;"
        "bad = {'torch', 'transformers', 'numpy', 'filelock'} & set(sys.modules); assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_both_backends_share_one_environment_with_the_pinned_versions(steps: Steps) -> None:
    folder = environments.install(["autogptq", "autoawq"], on_line=_silent)
    first, second = environments.installed("autogptq"), environments.installed("autoawq")
    assert first is not None
    assert first == second
    assert first.python == folder / "bin" / "python"
    assert first.worker == WORKER
    assert (first.versions["auto-gptq"], first.versions["autoawq"]) == ("0.7.1", "0.2.9")
    assert len(first.versions) == len(environments.pins())


def test_it_is_made_in_the_order_that_works(steps: Steps) -> None:
    folder = environments.install(["autoawq"], on_line=_silent)
    python = str(folder / "bin" / "python")
    venv, ordinary, old, check = steps.commands
    assert venv[0] == sys.executable
    assert [command[:2] for command in (venv, ordinary, old, check)] == [[venv[0], "-I"], *3 * [[python, "-I"]]]
    assert not [word for word in ordinary if word.startswith(("auto-gptq", "autoawq", "--no-"))][1:]
    assert [word for word in ordinary if "==" in word] == list(environments.pins()[:-2])
    # Their builds need the torch that is there, and must not bring another one.
    assert old[-4:] == ["--no-build-isolation", "--no-deps", *environments.pins()[-2:]]
    assert check[2:] == [str(WORKER), "--check"]


def test_a_second_installation_finds_the_first_and_runs_nothing(steps: Steps) -> None:
    told: list[str] = []
    first = environments.install(["autogptq"], on_line=told.append)
    assert told == ["step 1", "step 2", "step 3", "step 4", f"autogptq: ready in {first}"]
    again: list[str] = []
    assert environments.install(["autogptq", "autoawq"], on_line=again.append) == first
    assert again == [f"autogptq and autoawq: ready in {first}"]
    assert len(steps.commands) == 4


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_failed_step_leaves_nothing_but_the_log_and_the_next_try_begins_anew(step: int, steps: Steps) -> None:
    steps.fails_at = step
    with pytest.raises(QuantizationError, match="It failed"):
        environments.install(["autogptq"], on_line=_silent)
    folder = environments._folder()
    assert not folder.exists()
    assert Path(f"{folder}.log").read_text(encoding="utf-8").splitlines()[-1] == f"step {step}"
    assert environments.installed("autogptq") is None
    steps.fails_at = None
    environments.install(["autogptq"], on_line=_silent)
    assert environments.installed("autogptq") is not None


@pytest.mark.parametrize("damage", ["no marker", "marker cut off", "no interpreter"])
def test_a_half_made_environment_is_not_there_and_is_made_anew(damage: str, steps: Steps) -> None:
    folder = environments.install(["autogptq"], on_line=_silent)
    if damage == "no marker":
        (folder / "environment.json").unlink()
    elif damage == "marker cut off":
        (folder / "environment.json").write_text('{"torch": ', encoding="utf-8")
    else:
        (folder / "bin" / "python").unlink()
        (folder / "bin" / "python").symlink_to(folder / "gone")
    assert environments.installed("autogptq") is None
    for path in (folder / "bin" / "python", folder / "bin"):
        path.unlink() if path.is_symlink() else path.rmdir()
    environments.install(["autogptq"], on_line=_silent)
    assert environments.installed("autogptq") is not None
    # Whatever lies there is cleared.
    assert "--clear" in steps.commands[4]


def test_other_pins_or_another_python_are_another_environment(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = environments.install(["autogptq"], on_line=_silent)
    other = tmp_path / "pins.txt"
    other.write_text("# a remark\n\n" + "\n".join([*environments.pins()[:-1], "autoawq==0.2.8"]), encoding="utf-8")
    with monkeypatch.context() as change:
        change.setattr(environments, "_PINS", other)
        assert environments.installed("autogptq") is None
        second = environments.install(["autogptq"], on_line=_silent)
        found = environments.installed("autoawq")
        assert found is not None
        assert found.versions["autoawq"] == "0.2.8"
    with monkeypatch.context() as change:
        change.setattr(environments.sys, "version_info", (3, 12, 9))
        third = environments._folder()
    assert len({first, second, third}) == 3
    assert environments.installed("autogptq") is not None


def test_whoever_comes_while_it_is_made_is_told_so_and_waits(steps: Steps) -> None:
    folder = environments._folder()
    folder.parent.mkdir(parents=True)
    told: list[str] = []
    waits = threading.Event()

    def hear(line: str) -> None:
        told.append(line)
        waits.set()

    with FileLock(f"{folder}.lock"):
        thread = threading.Thread(target=environments.install, args=(["autoawq"],), kwargs={"on_line": hear})
        thread.start()
        assert waits.wait(30)
        assert told == [f"Another process is making {folder}: waiting for it."]
        assert steps.commands == []
    thread.join(30)
    assert told[-1] == f"autoawq: ready in {folder}"


def test_an_unknown_name_is_refused_before_anything_is_made(steps: Steps, cache: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"named 'autogpt': did you mean autogptq or autoawq\?"):
        environments.install(["autoawq", "autogpt"], on_line=_silent)
    with pytest.raises(UnknownNameError, match="backend with an environment of its own named 'bnb'"):
        environments.installed("bnb")
    assert steps.commands == []
    assert not cache.exists()


def test_another_python_than_the_pins_are_for_is_refused(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as change:
        change.setattr(environments, "PYTHONS", ((3, 1), (3, 2)))
        with pytest.raises(
            InputError, match=r"autogptq can't be installed for Python 3\.\d+\.\d+.*: .* 3\.1 and 3\.2;"
        ):
            environments.install(["autogptq"], on_line=_silent)
    assert steps.commands == []


def _follow(code: str, log: Path, told: list[str]) -> None:
    with log.open("w", encoding="utf-8") as kept:
        environments._follow([sys.executable, "-c", textwrap.dedent(code)], kept, log, told.append)


def test_lines_of_a_step_are_told_and_kept_and_python_s_own_variables_are_not_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "elsewhere")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "7")
    told: list[str] = []
    code = """
        import os, sys
        print("elsewhere" in os.environ.values(), os.environ["BUILD_CUDA_EXT"], os.environ["PIP_DEFAULT_TIMEOUT"])
        print("to the other stream", file=sys.stderr)
    """
    _follow(code, tmp_path / "log", told)
    assert sorted(told) == ["False 0 7", "to the other stream"]
    assert sorted((tmp_path / "log").read_text(encoding="utf-8").splitlines()) == sorted(told)


def test_a_step_that_fails_is_told_in_one_sentence_with_its_last_line(tmp_path: Path) -> None:
    code = "print('ERROR: No matching distribution.'); print(); raise SystemExit(3)"
    with pytest.raises(QuantizationError) as caught:
        _follow(code, tmp_path / "log", [])
    assert str(caught.value) == (
        "The environment of autogptq and autoawq can't be made: ERROR: No matching distribution; "
        f"see {tmp_path / 'log'}, check the network and that 2 GB are free, and run the command again."
    )
    with pytest.raises(QuantizationError, match="can't be made: exit code 3; see"):
        _follow("raise SystemExit(3)", tmp_path / "log", [])


@pytest.fixture
def environment(tmp_path: Path) -> Callable[[str], Environment]:
    """Makes an environment of this interpreter whose worker runs the code given, with the job as ``job``."""

    def make(code: str) -> Environment:
        worker = tmp_path / "worker.py"
        begin = "import json, os, pathlib, sys\njob = json.loads(pathlib.Path(sys.argv[1]).read_text())\n"
        worker.write_text(begin + textwrap.dedent(code), encoding="utf-8")
        return Environment(name="test", python=Path(sys.executable), worker=worker, versions={})

    return make


def _run(environment: Environment, tmp_path: Path, timeout_s: float = 60, **job: Any) -> str:
    log = tmp_path / "logs" / "job.log"
    environments.run_worker(environment, {"name": "a-job", **job}, timeout_s=timeout_s, log=log)
    return log.read_text(encoding="utf-8")


def test_a_worker_is_given_its_job_and_what_it_prints_is_kept(
    environment: Callable[[str], Environment], tmp_path: Path
) -> None:
    code = """
        (pathlib.Path(job["save_in"]) / "done").write_text(str(sum(job["windows"][0])))
        print("one"); print("two", file=sys.stderr)
    """
    said = _run(environment(code), tmp_path, save_in=str(tmp_path), windows=[[1, 2, 3]])
    assert (tmp_path / "done").read_text(encoding="utf-8") == "6"
    assert sorted(said.split()) == ["one", "two"]
    # A second job's log takes the place of the first's.
    assert _run(environment("print('three')"), tmp_path) == "three\n"


def test_a_worker_sees_no_secret_no_home_and_no_path_of_ours(
    environment: Callable[[str], Environment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code = "print(json.dumps([dict(os.environ), sys.path, sys.flags.isolated, os.getcwd()]))"
    variables, path, isolated, folder = json.loads(_run(environment(code), tmp_path))
    assert isolated == 1
    assert str(tmp_path) not in path
    assert set(variables) <= {*environments._KEPT, *environments._WORKER_SETTINGS, "HOME", "HF_HOME", "LC_CTYPE"}
    assert variables["HF_HUB_OFFLINE"] == variables["TRANSFORMERS_OFFLINE"] == variables["HF_DATASETS_OFFLINE"] == "1"
    assert variables["HOME"] == folder
    assert not Path(folder).exists()


def test_a_worker_that_fails_is_told_in_one_sentence_with_its_last_line_and_its_log(
    environment: Callable[[str], Environment], tmp_path: Path
) -> None:
    with pytest.raises(QuantizationError) as caught:
        _run(environment("print('before'); raise ValueError('no such kernel.')"), tmp_path)
    log = tmp_path / "logs" / "job.log"
    assert str(caught.value) == (
        f"a-job failed in the environment 'test': ValueError: no such kernel; its output is in {log}."
    )
    assert "Traceback" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit(7)", "exit code 7"),
        ("os.kill(os.getpid(), 9)", r"ended by SIGKILL \(often: the machine ran out of memory\)"),
        ("os.kill(os.getpid(), 15)", "ended by SIGTERM"),
        ("print('x' * 9000); sys.stdout.flush(); os._exit(1)", "x{400}"),
        ("sys.stdout.buffer.write(b'\\xff\\n\\n'); sys.stdout.flush(); os._exit(1)", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_worker_that_ends_in_another_way_is_told_as_well(
    code: str, said: str, environment: Callable[[str], Environment], tmp_path: Path
) -> None:
    with pytest.raises(QuantizationError, match=rf"^a-job failed in the environment 'test': {said}; its output is in"):
        _run(environment(code), tmp_path)


def _gone(pid: int, within_s: float = 60) -> bool:
    """Whether a process has ended; one that waits to be buried counts as ended."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


linux_only = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Processes are looked up in /proc.")

CHILD = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(job["tell"]).write_text(str(child.pid))
"""


@linux_only
def test_a_worker_that_takes_too_long_is_ended_with_all_that_it_started(
    environment: Callable[[str], Environment], tmp_path: Path
) -> None:
    hangs = environment(CHILD + "print('begun', flush=True)\nimport time\ntime.sleep(600)")
    with pytest.raises(QuantizationError, match=r"^a-job took longer than 3 s in the environment 'test' and was ended"):
        _run(hangs, tmp_path, timeout_s=3, tell=str(tmp_path / "pid"))
    assert _gone(int((tmp_path / "pid").read_text(encoding="utf-8")))
    assert (tmp_path / "logs" / "job.log").read_text(encoding="utf-8") == "begun\n"


@linux_only
def test_what_a_worker_leaves_running_is_ended_when_it_is_done(
    environment: Callable[[str], Environment], tmp_path: Path
) -> None:
    _run(environment(CHILD), tmp_path, tell=str(tmp_path / "pid"))
    assert _gone(int((tmp_path / "pid").read_text(encoding="utf-8")))


@linux_only
def test_a_worker_ends_with_all_that_it_started_when_its_parent_is_killed(
    environment: Callable[[str], Environment], tmp_path: Path
) -> None:
    leash = f"""
import importlib.util, time
spec = importlib.util.spec_from_file_location("legacy_worker", {str(WORKER)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.end_with_parent()
pathlib.Path(job["me"]).write_text(str(os.getpid()))
"""
    worker = environment(leash + CHILD + "time.sleep(600)")
    code = f"""
import sys
from pathlib import Path
from harness.quantize.legacy.environments import Environment, run_worker
worker = Path({str(worker.worker)!r})
environment = Environment(name="test", python=Path(sys.executable), worker=worker, versions={{}})
job = {{"name": "a-job", "tell": {str(tmp_path / "pid")!r}, "me": {str(tmp_path / "me")!r}}}
run_worker(environment, job, timeout_s=600, log=Path({str(tmp_path / "log")!r}))
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and not (tmp_path / "pid").is_file():
            time.sleep(0.05)
        time.sleep(0.2)
        pids = [int((tmp_path / name).read_text(encoding="utf-8")) for name in ("me", "pid")]
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert [_gone(pid) for pid in pids] == [True, True]


def test_the_worker_s_script_imports_nothing_of_ours_and_no_library_before_it_works() -> None:
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-I", "-c", code, str(WORKER)], capture_output=True, text=True, check=True)
    assert not {"harness", "torch", "transformers", "awq", "auto_gptq"} & set(done.stdout.split("'"))


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({"backend": "other", "threads": 1}, "KeyError: 'other'"),
        ("not JSON", r"JSONDecodeError: Expecting value: .*"),
    ],
)
def test_the_worker_s_script_ends_with_a_line_that_says_what_failed(job: Any, said: str, tmp_path: Path) -> None:
    place = tmp_path / "job.json"
    place.write_text(job if isinstance(job, str) else json.dumps(job), encoding="utf-8")
    ours, its = os.pipe()
    done = subprocess.run(
        [sys.executable, "-I", str(WORKER), str(place)], stdin=ours, capture_output=True, text=True, check=False
    )
    for end in (ours, its):
        os.close(end)
    assert done.returncode == 1
    assert re.fullmatch(said, done.stderr.splitlines()[-1])


def test_the_worker_s_script_reaches_no_network() -> None:
    code = (
        "import runpy, socket, sys; runpy.run_path(sys.argv[1])['forbid_network']();"
        "socket.create_connection(('127.0.0.1', 9), timeout=5)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(WORKER)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "PermissionError: the library tried to reach ('127.0.0.1', 9)" in done.stderr


def test_libraries_in_the_worker_have_no_reason_to_try_a_socket() -> None:
    code = (
        "import runpy, socket, sys; runpy.run_path(sys.argv[1])['forbid_network']();"
        "sys.addaudithook(lambda event, told: sys.exit(7) if event == 'socket.__new__' else None);"
        "import urllib3.util.connection as c; print(c.HAS_IPV6)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(WORKER)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False")


def test_a_worker_in_another_program_s_group_ends_itself_alone() -> None:
    code = "import runpy, sys, time; runpy.run_path(sys.argv[1])['end_with_parent'](); time.sleep(600)"
    # The group is this test's own: were it ended, no assertion would be reached.
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(WORKER)], stdin=subprocess.DEVNULL, check=False, timeout=60
    )
    assert done.returncode == 1
