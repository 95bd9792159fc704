"""Blocks the network while scoring; a job that uses it fails with the reason."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
           "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
"""Variables that keep libraries from asking a hub at all."""

# An exit code that Python, a shell or a signal never gives.
_STOPPED = 119
_MARK = "Stopped by the fence: "
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_LOOK_UPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
_ON_A_SOCKET = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg")


def guard() -> None:
    """Stops this process as soon as Python code makes, binds or uses a socket of the internet, or looks a name up.

    For good, and whatever the code catches: the process writes the reason to
    its standard error and is gone. Sockets between processes of this machine
    (``AF_UNIX``) are left alone. Code that is not Python's is the kernel's to
    stop (``fence.enter``).
    """
    os.environ.update(OFFLINE)
    # Libraries imported from here on would find out by opening a socket.
    socket.has_ipv6 = False
    sys.addaudithook(_watch)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not event.startswith("socket."):
        return
    if event in _LOOK_UPS:
        _stop(f"look {_shown(arguments[0])} up")
    elif event in _ON_A_SOCKET and arguments[0].family in _INTERNET:
        _stop(f"reach {_shown(arguments[1])}")
    elif event == "socket.__new__" and arguments[1] in _INTERNET:
        _stop("open a network socket")


def _shown(address: object) -> str:
    return repr(address)[:200]


def _stop(deed: str) -> None:
    """Ends the process; an exception could be caught, and then the job would go on as if nothing had been."""
    sys.stderr.flush()
    os.write(2, f"\n{_MARK}a worker tried to {deed}, but scoring runs without network.\n".encode())
    os._exit(_STOPPED)


def why_stopped(exitcode: int | None, log: Path) -> str | None:
    """Returns why a worker was stopped for reaching out, None where it ended for another reason.

    Args:
        exitcode: Its exit code; negative for a signal.
        log: What it wrote to its standard error.
    """
    if exitcode == -signal.SIGSYS:
        return (
            "A library of the worker tried to open a network socket, but scoring runs without network: the kernel "
            "stopped it."
        )
    if exitcode != _STOPPED:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
    return told[-1][:1].upper() + told[-1][1:] if told else "A worker reached for the network."
