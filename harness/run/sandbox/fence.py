"""The fence of a worker: the kernel lets it read its inputs and write its outputs, and refuses sockets.

Landlock (Linux 5.13 and later) fences files and TCP, seccomp every socket of a
network, also for code that is not Python's and for processes that a worker
starts. Where the kernel or the two libraries are missing, ``describe`` says so
and the guard in Python (``network.guard``) is what is left.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harness import plugins, provenance
from harness.paths import cache_dir, content_dir
from harness.quantize.backends import ggml
from harness.records import CellResult, Job, Submission
from harness.run.job import Settings
from harness.run.sandbox import network as network_fence
from harness.score.corpora import catalogue
from harness.score.corpora import places as corpus_places

SWITCH = "QUENCH_FENCE"
"""Environment variable that ``off`` turns the kernel's part off with."""

_KERNELS = "kernels"
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/opt", "/nix/store", "/proc", "/sys", "/run/nvidia-persistenced")
# Of /etc what the loader, the C library and drivers read; no keys, no hosts, no shadow.
_ETC = ("alternatives", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "locale.alias", "localtime",
        "nsswitch.conf", "nvidia", "os-release", "passwd", "protocols", "services", "ssl/certs", "ssl/openssl.cnf",
        "timezone")  # fmt: skip
# No disks and no memory: root could read every file through them.
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "pts", "nvidia*", "dri", "kfd", "infiniband")
# CUDA names its threads there and does not start where it can't.
_OWN_THREADS = "/proc/self/task"
# Compiled once and used by the next worker; by default they lie in a home that the fence closes.
_COMPILED = ("CUDA_CACHE_PATH", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR",
             "TRITON_CACHE_DIR")  # fmt: skip

_MAX_OPEN_FILES = 8192
_MIN_FILE_LIMIT = 64 * 1024**3
_DENIED = re.compile(r"\[Errno 13\] Permission denied: '(?P<path>[^']+)'")
_memory_limit: int | None = None
_NO_MEMORY = re.compile(r"can't allocate memory|Cannot allocate memory|Unable to allocate|std::bad_alloc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """What a worker may touch.

    Attributes:
        readable: Files and folders that may be read, and programs in them started.
        writable: Folders in which anything may be done.
        devices: Of /dev what may be read, written and controlled, and this process's threads.
        kernel: What of the kernel holds the worker to it, as rows tell it; empty for nothing.
    """

    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    devices: tuple[Path, ...]
    kernel: str

    def complete(self, result: CellResult) -> CellResult:
        """Returns a row that tells the fence among its versions, and in its reason where the fence is the cause."""
        made = result.provenance
        versions = {**made.versions, "fence": self.kernel or "none"}
        result = replace(result, provenance=replace(made, versions=versions))
        return self._explained(result) if result.status == "failed" else result

    def _explained(self, result: CellResult) -> CellResult:
        reason = result.reason or ""
        denied = _DENIED.search(reason)
        if denied is not None and "landlock" in self.kernel and not self._holds(Path(denied["path"])):
            told = (
                f"The fence refused {denied['path']}: a worker reads its submission, target, base and data and writes "
                "to the cache alone; see docs/security.md."
            )
            return replace(result, reason=told, error_type="FenceError")
        out_of_memory = result.error_type == "MemoryError" or _NO_MEMORY.search(reason)
        if out_of_memory and _memory_limit is not None:
            told = (
                f"The worker needed more than its {_memory_limit / 1024**3:.3g} GB of memory: raise --memory-limit, or "
                "run it where there is more."
            )
            return replace(result, reason=told, error_type="MemoryError")
        return result

    def _holds(self, path: Path) -> bool:
        place = path.resolve()
        return any(place.is_relative_to(each) for each in (*self.readable, *self.writable, *self.devices))


def enter(job: Job, submissions: Mapping[str, Submission], settings: Settings, log: Path) -> Fence:
    """Fences this process in, for good: no network, its own inputs and outputs, limits on what it takes.

    To be called before the process has a second thread: Landlock binds the
    calling one and those that it starts. Temporary files go to a folder of the
    worker's own, which ``clear`` removes.

    Args:
        job: What the process will do.
        submissions: All submissions by name: target and bases are looked up here.
        settings: Cache and data folder of the run.
        log: The job's log; standard error must lead there already.

    Raises:
        OSError: The kernel has Landlock or seccomp and refuses them.
    """
    # git reads places that will be out of reach; the state is kept for the rows.
    provenance.code_state()
    # Others' files may lie beside the corpora of a folder: each corpus alone is readable.
    corpus_places.name_each()
    scratch = _scratch(log)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    for name in _COMPILED:
        os.environ.setdefault(name, str(Path(settings.cache) / _KERNELS / name.lower()))
    writable = _present(scratch, log.parent.parent, settings.cache, cache_dir(), "/dev/shm",
                        *(os.environ[name] for name in _COMPILED))  # fmt: skip
    readable = _present(*_software(), *_inputs(job, submissions, settings))
    devices = _present(*(path for pattern in _DEVICES for path in Path("/dev").glob(pattern)), _OWN_THREADS)
    landlock_abi, has_seccomp = _abilities()
    kernel = [*([f"landlock {landlock_abi}"] if landlock_abi else []), *(["seccomp"] if has_seccomp else [])]
    fence = Fence(readable=readable, writable=writable, devices=devices, kernel=" + ".join(kernel))
    _limit_resources(settings)
    if landlock_abi:
        _close_files(fence)
    if has_seccomp:
        _close_sockets()
    network_fence.guard()
    return fence


def clear(log: Path) -> None:
    """Removes what a worker that is gone left in its folder of temporary files."""
    shutil.rmtree(_scratch(log), ignore_errors=True)


def describe() -> str:
    """Returns one sentence: whether workers are fenced by the kernel here, and by what, or why not."""
    if os.environ.get(SWITCH) == "off":
        return f"Kernel fence: off, because {SWITCH} says so; a guard in Python keeps workers off the network."
    landlock_abi, has_seccomp = _abilities()
    parts = []
    if landlock_abi:
        parts.append(f"Landlock ABI {landlock_abi} ({'files, TCP' if landlock_abi >= 4 else 'files'})")
    if has_seccomp:
        parts.append("seccomp (sockets)")
    if parts:
        return f"Kernel fence: {', '.join(parts)}."
    return (
        "Kernel fence: not available here (it needs Linux 5.13 or later and the packages landlockpy and pyseccomp); a "
        "guard in Python keeps workers off the network, and nothing keeps them off files."
    )


def limit_memory(limit: int) -> None:
    """Bounds the memory for data that this process may take from now on, in bytes.

    What the libraries took before is not counted: workers share it. RLIMIT_DATA,
    not RLIMIT_AS: CUDA reserves more addresses than any machine has memory.
    Weights mapped from files and memory of the card don't count.
    """
    global _memory_limit
    _memory_limit = limit
    _bound(resource.RLIMIT_DATA, _data_bytes() + limit)


def _scratch(log: Path) -> Path:
    return log.with_suffix(".tmp").resolve()


def _present(*places: str | Path) -> tuple[Path, ...]:
    """Returns what of it exists, without links: the kernel's rules are about files, not names."""
    return tuple(dict.fromkeys(Path(place).resolve() for place in places if Path(place).exists()))


def _software() -> Iterator[str | Path]:
    """Yields where Python, its packages, the system's libraries and Quench's own files lie."""
    yield from _SYSTEM
    yield from (f"/etc/{name}" for name in _ETC)
    yield from (sys.prefix, sys.exec_prefix, sys.base_prefix)
    package = Path(__file__).resolve().parents[2]
    yield package
    yield content_dir("tasks")
    yield from (*plugins.folders(), *catalogue.outside())
    for name in ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH"):
        yield from filter(None, os.environ.get(name, "").split(os.pathsep))
    yield from _llama_cpp()
    # A checkout on the path holds submissions and a store; the package is what is imported from it.
    yield from (each for each in sys.path if each and Path(each).resolve() != package.parent)


def _llama_cpp() -> Iterator[Path]:
    """Yields the folders in which ``quantize/backends/ggml.py`` looks for a library that lies nowhere in particular."""
    if library := os.environ.get(ggml.LIBRARY_VARIABLE):
        yield Path(library).parent
    if program := shutil.which("llama-quantize"):
        folder = Path(program).resolve().parent
        yield from (folder, folder.parent / "lib")


def _inputs(job: Job, submissions: Mapping[str, Submission], settings: Settings) -> Iterator[str | Path]:
    """Yields the folders of the submission, its target and their bases, and that of the data."""
    first = [job.submission, submissions.get(job.submission.target or "")]
    for one in filter(None, first):
        for each in filter(None, (one, submissions.get(one.base_model or ""))):
            yield each.folder
    if settings.data_dir:
        yield settings.data_dir


def _abilities() -> tuple[int, bool]:
    """Returns Landlock's ABI here, 0 for none, and whether seccomp can be used."""
    if sys.platform != "linux" or os.environ.get(SWITCH) == "off":
        return 0, False
    try:
        import landlockpy

        abi = landlockpy.abi_version()
    except (ImportError, OSError):
        abi = 0
    try:
        # It raises where the system has no libseccomp.
        import pyseccomp

        return abi, pyseccomp.get_api() > 0
    except (ImportError, OSError, RuntimeError, AttributeError):
        return abi, False


def _close_files(fence: Fence) -> None:
    """Has the kernel refuse every other file to this process and those that it starts, and TCP and signals outward."""
    from landlockpy import AccessFS, Ruleset, Scope, fs_for_abi

    of_a_file = AccessFS.EXECUTE | AccessFS.WRITE_FILE | AccessFS.READ_FILE | AccessFS.TRUNCATE | AccessFS.IOCTL_DEV
    with Ruleset(scoped=Scope.SIGNAL | Scope.ABSTRACT_UNIX_SOCKET) as rules:
        everything = fs_for_abi(rules.abi_version)
        reading = AccessFS.EXECUTE | AccessFS.READ_FILE | AccessFS.READ_DIR | AccessFS.RESOLVE_UNIX
        using = (of_a_file | AccessFS.READ_DIR) & ~AccessFS.EXECUTE
        for access, places in ((reading, fence.readable), (everything, fence.writable), (using, fence.devices)):
            for place in places:
                rules.allow_path(place, access if place.is_dir() else access & of_a_file)
        rules.restrict()


def _close_sockets() -> None:
    """Has the kernel end this process at a socket of the internet, and refuse those of any other network."""
    import pyseccomp

    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for family in range(2, 64):
        is_internet = family in (socket.AF_INET, socket.AF_INET6)
        # Netlink asks the kernel itself, as drivers do.
        if family != getattr(socket, "AF_NETLINK", 16):
            action = pyseccomp.KILL_PROCESS if is_internet else pyseccomp.ERRNO(13)
            rules.add_rule(action, "socket", pyseccomp.Arg(0, pyseccomp.EQ, family))
    # Its queue opens sockets past the filter.
    rules.add_rule(pyseccomp.ERRNO(1), "io_uring_setup")
    rules.load()


def _limit_resources(settings: Settings) -> None:
    """No core dumps, files no larger than what the cache may hold, and so many open at once."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A merged model is written whatever the cache keeps.
    _bound(resource.RLIMIT_FSIZE, max(settings.cache_limit, _MIN_FILE_LIMIT))
    _bound(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)


def _bound(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _data_bytes() -> int:
    """Returns the bytes that RLIMIT_DATA holds against this process now, a little more where its stack is large."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    except OSError:
        return 0
    return pages * resource.getpagesize()
