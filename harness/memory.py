"""Whether a model fits into memory or is read layer by layer: one rule for merging, quantizing and scoring."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

Streaming = Literal["auto", "always", "never"]

RESERVE = 2 * 2**30
"""Most bytes that are left for activations, keys and values; of a small model as many as it takes itself."""

_CGROUP = Path("/sys/fs/cgroup")
_LOG = logging.getLogger(__name__)
_mode: ContextVar[Streaming] = ContextVar("streaming", default="auto")


@contextmanager
def streaming(mode: Streaming) -> Iterator[None]:
    """Has models streamed always, never, or (``auto``) where they don't fit, within the block."""
    before = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(before)


def must_stream(need: int, what: str, *, device: str = "cpu") -> bool:
    """Returns whether something is to be read layer by layer instead of whole, and logs it if so.

    The rule: it is, where ``need`` and the reserve are more than what is free.

    Args:
        need: Bytes that it takes whole.
        what: What it is, for the log.
        device: torch device whose memory it takes.
    """
    mode = _mode.get()
    if mode != "auto":
        return mode == "always"
    free = free_bytes(device)
    if need + min(need, RESERVE) <= free:
        return False
    _LOG.warning(
        "%s takes %.1f GB whole and %.1f GB are free: its layers are read one after the other, which is slower.",
        what, need / 2**30, free / 2**30,
    )  # fmt: skip
    return True


def free_bytes(device: str = "cpu") -> int:
    """Returns the bytes that may still be taken: of machine, container and own limit the least, or of a GPU."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    found = [int(psutil.virtual_memory().available)]
    with suppress(OSError, ValueError, KeyError):
        found.append(container_bytes(_CGROUP))
    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    if limit != resource.RLIM_INFINITY:
        found.append(limit - int(psutil.Process().memory_info().data))
    return max(0, min(found))


def container_bytes(folder: Path) -> int:
    """Returns what the limit of a control group leaves; pages of files that are only cached count as free.

    Args:
        folder: The group's folder in the kernel's second version of that interface.

    Raises:
        OSError: It has no limit to read.
        ValueError: The limit is ``max``: there is none.
    """
    limit = int((folder / "memory.max").read_text(encoding="ascii"))
    used = int((folder / "memory.current").read_text(encoding="ascii"))
    told = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    return limit - (used - int(told["file"]))
