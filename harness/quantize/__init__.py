"""Ways to quantize: what a backend is, which there are, and how their presets are named.

One module of this package is one backend: it holds an object ``BACKEND`` that
is a ``Quantizer``. Modules are found by looking, so a new file is a new backend.
Installed packages add others (``plugged``). Importing this package loads no numerical library.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from harness.errors import PluginError, QuantizationError, UnknownNameError
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

if TYPE_CHECKING:
    from harness.quantize.plugged import Plugged


@runtime_checkable
class Quantizer(Protocol):
    """A backend: one way to turn a 16-bit checkpoint into a proved quantized model.

    Attributes:
        backend: Name of its module.
        deterministic: Whether the same checkpoint, spec and calibration give
            the same codes each time, on one machine and one device.
        install: Command that brings what it needs beside Quench itself.
        impossible: Widths in bits that it can't make, each with the reason in
            a few words; all other widths of ``matrix.WIDTHS`` are presets.
    """

    backend: str
    deterministic: bool
    install: str
    impossible: Mapping[int, str]

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns the specs that tables and defaults offer."""
        ...

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec of a full name, preset or not; None where it is not one of this backend's."""
        ...

    def library_version(self) -> str | None:
        """Returns the version of what does the quantizing; None where it is absent or there is none.

        It is part of every cell's key: another version, another cell.
        """
        ...

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns one sentence why ``spec`` can't run on ``device`` here, None where it can."""
        ...

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint quantized, dequantized into a dense model, and proved.

        The linear layers inside the transformer blocks are quantized, nothing
        else. The checkpoint's files are left as they are.

        Args:
            checkpoint: The dense 16-bit model.
            spec: One of this backend's.
            device: torch device of the model that comes back.
            calibration: The texts that ``calibration.prepare`` chose for
                ``spec``; unused where ``calibration.recipe_of`` it is None.

        Raises:
            QuantizationError: The backend failed, or its proof does not hold.
        """
        ...


@cache
def discover() -> Mapping[str, Quantizer]:
    """Returns every backend of this package and of installed plug-ins by name.

    Raises:
        QuantizationError: A module's ``BACKEND`` is not a ``Quantizer`` named
            like its module.
    """
    found: dict[str, Quantizer] = {}
    for module in pkgutil.iter_modules(__path__):
        backend = getattr(import_module(f"{__name__}.{module.name}"), "BACKEND", None)
        if backend is None:
            continue
        if not isinstance(backend, Quantizer) or backend.backend != module.name:
            raise QuantizationError(
                f"BACKEND in harness/quantize/{module.name}.py is no backend: it must have every member of "
                f"harness.quantize.Quantizer and the name {module.name!r}."
            )
        found[module.name] = backend
    return MappingProxyType({**found, **_plugged().usable})


def _plugged() -> Plugged:
    from harness.quantize import plugged

    return plugged.look(frozenset(module.name for module in pkgutil.iter_modules(__path__)))


def broken() -> Mapping[str, str]:
    """Returns the sentence why an installed plug-in can't be used, by its name."""
    return _plugged().broken


def origin_of(name: str) -> str | None:
    """Returns the package that a backend comes from, with its version; None for Quench's own."""
    return _plugged().origins.get(name)


def with_package(backend: str, version: str | None) -> str | None:
    """Returns what keys say of a backend's version: its library's, after its package's where a plug-in adds it.

    Args:
        backend: Its name.
        version: What its ``library_version`` says.
    """
    return ", ".join(filter(None, (origin_of(backend), version))) or None


def presets() -> tuple[QuantizerSpec, ...]:
    """Returns all presets: 16 bit first, then backend by backend, wider codes first."""
    offered = [spec for backend in discover().values() for spec in backend.presets()]
    return tuple(sorted(offered, key=lambda spec: (-spec.bits if spec.bits > 8 else 0, spec.backend, -spec.bits)))


def _bits_in(name: str) -> int | None:
    """Returns the bit width that a short name such as ``4bit`` or ``int4`` speaks of."""
    told = re.fullmatch(r"(?:int|w|u)?-?(\d{1,2})[-_ ]?(?:bits?)?", name)
    return int(told.group(1)) if told else None


def _meant_by(name: str, offered: tuple[QuantizerSpec, ...]) -> list[str]:
    """Returns the presets that a short or incomplete name may stand for."""
    # GGUF's type names have an underscore of their own.
    offered_names = [spec.name.replace("_", "-") for spec in offered]
    wanted = name.strip().lower().replace("_", "-")
    if wanted in offered_names:
        return [offered[offered_names.index(wanted)].name]
    bits = _bits_in(wanted)
    if bits is not None:
        return [spec.name for spec in offered if spec.bits == bits]
    return [spec.name for spec, told in zip(offered, offered_names, strict=True) if wanted and wanted in told]


def resolve(name: str) -> QuantizerSpec:
    """Returns the spec of a preset or of any full name that a backend can parse.

    Short names are refused, not guessed: "4-bit" has meant FP4 in two papers
    that called it round-to-nearest, and the group size moves the result.

    Raises:
        UnknownNameError: No spec, or more than one, goes by that name; the
            message names the choices.
        PluginError: It is a name of a plug-in that can't be used.
    """
    offered = presets()
    for spec in offered:
        if spec.name == name:
            return spec
    for backend in discover().values():
        # A plug-in may know the names that begin with its own, and can't take another's.
        if origin_of(backend.backend) is None or name.startswith(f"{backend.backend}-"):
            parsed = backend.parse(name)
            if parsed is not None:
                return parsed
    for plugin, reason in broken().items():
        if name.startswith(f"{plugin}-"):
            raise PluginError(reason)
    meant = _meant_by(name, offered)
    error = UnknownNameError("quantizer", name, meant or [spec.name for spec in offered])
    if len(meant) > 1:
        error.args = (
            f"{name!r} names no single quantizer, since backend, group size and symmetry all move the result: "
            f"choose {', '.join(meant[:-1])} or {meant[-1]}.",
        )
    raise error


def backend_of(spec: QuantizerSpec) -> Quantizer:
    """Returns the backend that makes ``spec``.

    Raises:
        UnknownNameError: No such backend is here.
    """
    backends = discover()
    if spec.backend not in backends:
        raise UnknownNameError("quantization backend", spec.backend, backends)
    return backends[spec.backend]
