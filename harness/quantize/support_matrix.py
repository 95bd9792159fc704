"""Which bit-widths each backend supports and which run on this machine; no library is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from harness.quantize import backend_of, broken, discover, origin_of, with_package
from harness.quantize.backend import WIDTHS, Quantizer
from harness.quantize.calibration import recipe_of
from harness.quantize.libraries import gpu_reason
from harness.records import QuantizerSpec

State = Literal["runs here", "needs a GPU", "needs install", "cannot"]

DENSE = "embeddings, norms, output head"
"""What stays in 16 bit under every backend: all that lies outside the blocks' linear layers."""

_NOT_QUANTIZED = "16 bit is the reference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One backend at one width.

    Attributes:
        bits: Bits per code.
        state: Whether it runs here, and if not, what is in the way.
        reason: Why it does not run here; None where it does.
        presets: Names of the backend's presets of that width; none where it
            can't make it.
    """

    bits: int
    state: State
    reason: str | None
    presets: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One backend: its facts and its entry for each of ``WIDTHS``.

    Attributes:
        backend: Name.
        entries: One for each width, in the order of ``WIDTHS``.
        calibrated: Whether it looks at activations, hence at texts.
        deterministic: Whether it gives the same codes twice.
        groups: Weights that share a scale, over all presets; None is a row.
        any_group: Whether names with other groups parse too.
        dense: What it leaves in 16 bit.
        install: Command that brings what it needs.
        library_version: Version of what quantizes here, None where absent.
        package: Installed package that adds it, with its version; None for
            Quench's own.
    """

    backend: str
    entries: tuple[Entry, ...]
    calibrated: bool
    deterministic: bool
    groups: tuple[int | None, ...]
    any_group: bool
    dense: str
    install: str
    library_version: str | None
    package: str | None = None

    @property
    def group_text(self) -> str:
        """The groups as tables show them; ``any`` where others parse."""
        told = ["row" if size is None else str(size) for size in self.groups]
        return ", ".join([*told, "any"] if self.any_group else told)


def state_of(spec: QuantizerSpec, device: str) -> tuple[State, str | None]:
    """Returns whether a spec runs on a device of this machine, and one sentence why where it does not."""
    backend = backend_of(spec)
    reason = backend.unavailable_reason(spec, device)
    if reason is not None:
        # What stands in the way on a CPU and not on a card is the card.
        return ("needs install" if backend.unavailable_reason(spec, "cuda") else "needs a GPU"), reason
    missing = gpu_reason(device)
    return ("runs here", None) if missing is None else ("needs a GPU", missing)


def gaps(row: Row, *states: State) -> dict[str, list[int]]:
    """Returns the widths of a backend that are in one of ``states``, by the reason why they don't run."""
    found: dict[str, list[int]] = {}
    for entry in row.entries:
        # That a quantizer makes nothing of 16 bit goes without saying.
        if entry.state in states and entry.reason is not None and entry.reason != _NOT_QUANTIZED:
            found.setdefault(entry.reason, []).append(entry.bits)
    return found


def matrix(device: str) -> tuple[Row, ...]:
    """Returns one row per backend that makes anything: the reference first, then by name, broken plug-ins last.

    Args:
        device: torch device that it would run on.
    """
    # A backend without presets reads what was submitted quantized, and makes nothing itself.
    making = [backend for backend in discover().values() if backend.presets()]
    backends = sorted(making, key=lambda backend: (not _is_dense(backend), backend.backend))
    return (*(row(backend, device) for backend in backends), *(_broken(*each) for each in broken().items()))


def row(backend: Quantizer, device: str) -> Row:
    """Returns a backend's row of the matrix."""
    presets = backend.presets()
    groups = {spec.group_size for spec in presets if spec.bits < 16}
    return Row(
        backend=backend.backend,
        entries=tuple(_entry(backend, bits, device) for bits in WIDTHS),
        calibrated=any(recipe_of(spec) is not None for spec in presets),
        deterministic=backend.deterministic,
        groups=tuple(sorted(groups, key=lambda size: -(size or 1 << 30))),
        any_group=any(_other_group_parses(backend, spec) for spec in presets),
        dense="everything" if _is_dense(backend) else DENSE,
        install=backend.install,
        library_version=with_package(backend.backend, backend.library_version()),
        package=origin_of(backend.backend),
    )


def _broken(name: str, reason: str) -> Row:
    """Returns the row of a plug-in that can't be used: it makes no width, for one reason."""
    return Row(
        backend=name,
        entries=tuple(Entry(bits=bits, state="cannot", reason=reason, presets=()) for bits in WIDTHS),
        calibrated=False,
        deterministic=False,
        groups=(),
        any_group=False,
        dense="everything",
        install="nothing until it is repaired",
        library_version=None,
        package=origin_of(name),
    )


def _is_dense(backend: Quantizer) -> bool:
    return all(spec.bits == 16 for spec in backend.presets())


def _other_group_parses(backend: Quantizer, spec: QuantizerSpec) -> bool:
    name, swapped = re.subn(rf"-g{spec.group_size}\b", "-g32", spec.name)
    return swapped == 1 and backend.parse(name) is not None


def _entry(backend: Quantizer, bits: int, device: str) -> Entry:
    offered = [spec for spec in backend.presets() if spec.bits == bits]
    if not offered:
        reason = _NOT_QUANTIZED if bits == 16 else backend.impossible[bits]
        return Entry(bits=bits, state="cannot", reason=reason, presets=())
    states = [state_of(spec, device) for spec in offered]
    state, told = next((each for each in states if each[0] == "runs here"), states[0])
    return Entry(bits=bits, state=state, reason=told, presets=tuple(spec.name for spec in offered))
