"""Environments of their own for libraries that need an old Python stack: make one, ask it, run jobs in it.

AutoGPTQ and AutoAWQ need a transformers that ours has left behind. They live in
a virtual environment below the cache folder, made of pinned requirements, and
work in a process of its interpreter: a JSON job in, a checkpoint's folder out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harness.errors import InputError, QuantizationError, UnknownNameError
from harness.paths import cache_dir

LIBRARIES = {"autogptq": "auto-gptq", "autoawq": "autoawq"}
"""Backends whose libraries live in the environment, and what those are called where they are installed from."""

INSTALL = f"quench backends install {' '.join(LIBRARIES)}"
"""The command that makes the environment."""

PYTHONS = ((3, 11), (3, 12))
"""Versions of the running interpreter that the pinned requirements are known to install on."""

_NAME = "legacy"
_PINS = Path(__file__).with_name("requirements.txt")
_WORKER = Path(__file__).with_name("worker.py")

# Written last: a folder without it is half made.
_MARKER = "environment.json"

_KEPT = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG", "LC_ALL")
_WORKER_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # The same codes with and without a card: the pinned versions are tried on CPUs alone.
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """An interpreter with libraries of its own.

    Attributes:
        name: What messages call it.
        python: Its interpreter.
        worker: Script that it runs; it is given the path of a JSON job.
        versions: Versions of the libraries in it, as they are pinned.
    """

    name: str
    python: Path
    worker: Path
    versions: Mapping[str, str]


def pins() -> tuple[str, ...]:
    """Returns the pinned requirements, torch first and the two old libraries last."""
    lines = _PINS.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def _folder() -> Path:
    """Returns where the environment of these pins and this Python lies, made or not."""
    told = json.dumps([pins(), sys.version_info[:2], sys.platform])
    digest = hashlib.sha256(told.encode()).hexdigest()[:12]
    return cache_dir() / "environments" / f"{_NAME}-{digest}"


def _read(folder: Path) -> Environment | None:
    python = folder / "bin" / "python"
    try:
        versions = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    # The interpreter that it was made with may be gone.
    if not os.access(python, os.X_OK):
        return None
    return Environment(name=_NAME, python=python, worker=_WORKER, versions=versions)


def installed(name: str) -> Environment | None:
    """Returns the environment of a backend, None where it is not made; a look at one small file.

    Raises:
        UnknownNameError: The backend has no environment of its own.
    """
    _check_names((name,))
    return _read(_folder())


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in LIBRARIES:
            raise UnknownNameError("backend with an environment of its own", name, LIBRARIES)


def install(names: Sequence[str], *, on_line: Callable[[str], None]) -> Path:
    """Makes the environment of the backends ``names`` unless it is there, and returns its folder.

    It takes minutes, 1.6 GB and a package index. What pip prints is kept in a
    file beside the folder. Whoever comes while another process makes it waits.

    Args:
        names: ``autogptq``, ``autoawq`` or both, which share one.
        on_line: Told every line of progress.

    Raises:
        UnknownNameError: A name is none of those.
        InputError: This Python is another one than the pins are for.
        QuantizationError: Python or pip failed; nothing is left but the log.
    """
    from filelock import FileLock, Timeout

    _check_names(names)
    if sys.version_info[:2] not in PYTHONS:
        raise InputError(
            f"{' and '.join(names)} can't be installed for Python {sys.version.split()[0]}: their libraries run on "
            f"{' and '.join('.'.join(map(str, version)) for version in PYTHONS)}; use Quench from one of those."
        )
    folder = _folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        on_line(f"Another process is making {folder}: waiting for it.")
        lock.acquire()
    try:
        if _read(folder) is None:
            _make(folder, Path(f"{folder}.log"), on_line)
        on_line(f"{' and '.join(names)}: ready in {folder}")
    finally:
        lock.release()
    return folder


def _make(folder: Path, log: Path, on_line: Callable[[str], None]) -> None:
    python, wanted = str(folder / "bin" / "python"), pins()
    old = [pin for pin in wanted if pin.split("==")[0] in LIBRARIES.values()]
    pip = [python, "-I", "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--progress-bar", "off"]
    commands = (
        [sys.executable, "-I", "-m", "venv", "--clear", str(folder)],
        [*pip, *(pin for pin in wanted if pin not in old)],
        [*pip, "--no-build-isolation", "--no-deps", *old],
        [python, "-I", str(_WORKER), "--check"],
    )
    try:
        with log.open("w", encoding="utf-8") as kept:
            for command in commands:
                _follow(command, kept, log, on_line)
        versions = dict(pin.split("==") for pin in wanted)
        (folder / _MARKER).write_text(json.dumps(versions, indent=1), encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _follow(command: Sequence[str], kept: IO[str], log: Path, on_line: Callable[[str], None]) -> None:
    """Runs one step of an installation, its lines told and kept."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    # AutoGPTQ's kernels need a CUDA compiler and are not what quantizes.
    environ["BUILD_CUDA_EXT"] = "0"
    last = ""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    with _group(command, env=environ, **pipes) as process:
        for line in process.stdout:
            kept.write(line)
            kept.flush()
            last = line.strip() or last
            on_line(line.rstrip())
        code = process.wait()
    if code:
        raise QuantizationError(
            f"The environment of {' and '.join(LIBRARIES)} can't be made: {last.rstrip('.') or f'exit code {code}'}; "
            f"see {log}, check the network and that 2 GB are free, and run the command again."
        )


@contextmanager
def _group(command: Sequence[str], **options: Any) -> Iterator[Any]:
    """Starts a process in a group of its own, which is gone when the block ends, however it ends."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()


def run_worker(environment: Environment, job: Mapping[str, Any], *, timeout_s: float, log: Path) -> None:
    """Has the worker of an environment do one job, and returns when it has done it.

    The worker sees a clean environment: no variables of this process but a few,
    no home, no network. It and whatever it starts are ended when time is up, and
    end themselves when this process dies, since then their standard input closes.

    Args:
        environment: As ``installed`` returned it.
        job: What the worker's script takes; ``name`` is what messages call it.
        timeout_s: Seconds until it is ended.
        log: File for everything that the worker prints; overwritten.

    Raises:
        QuantizationError: It failed, with its last line and where its log is;
            or it took too long.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quench-job-") as place, log.open("wb") as sink:
        told = Path(place) / "job.json"
        told.write_text(json.dumps(dict(job)), encoding="utf-8")
        environ = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environ |= _WORKER_SETTINGS | {"HOME": place, "HF_HOME": place}
        command = [str(environment.python), "-I", str(environment.worker), str(told)]
        with _group(command, env=environ, cwd=place, stdin=subprocess.PIPE, stdout=sink, stderr=sink) as process:
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired as error:
                raise QuantizationError(
                    f"{job['name']} took longer than {timeout_s:g} s in the environment {environment.name!r} and was "
                    f"ended: its output is in {log}."
                ) from error
    if code:
        raise QuantizationError(
            f"{job['name']} failed in the environment {environment.name!r}: {_last_line(log, code)}; its output is in "
            f"{log}."
        )


def _last_line(log: Path, code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}{' (often: the machine ran out of memory)' if name == 'SIGKILL' else ''}"
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip()[-400:].rstrip(".") if lines else f"exit code {code}"
