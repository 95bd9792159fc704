"""Ways to quantize: which backends there are, and how their presets are named.

One module of ``backends`` is one backend: it holds an object ``BACKEND`` that is a
``Quantizer``. A new file there is a new backend. Installed packages add others
(``plugins``). Importing this package loads no numerical library.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType

from harness.errors import PluginError, QuantizationError, UnknownNameError
from harness.quantize import backends
from harness.quantize import plugins as quantizer_plugins
from harness.quantize.backend import Quantizer
from harness.quantize.plugins import Plugged
from harness.records import QuantizerSpec


@cache
def discover() -> Mapping[str, Quantizer]:
    """Returns every backend of this package and of installed plug-ins by name.

    Raises:
        QuantizationError: A module's ``BACKEND`` is not a ``Quantizer`` named
            like its module.
    """
    found: dict[str, Quantizer] = {}
    for name in sorted(_own_names()):
        backend = getattr(import_module(f"{backends.__name__}.{name}"), "BACKEND", None)
        if not isinstance(backend, Quantizer) or backend.backend != name:
            raise QuantizationError(
                f"BACKEND in harness/quantize/backends/{name}.py is no backend: it must have every member of "
                f"harness.quantize.backend.Quantizer and the name {name!r}."
            )
        found[name] = backend
    return MappingProxyType({**found, **_plugged().usable})


def _own_names() -> frozenset[str]:
    return frozenset(module.name for module in pkgutil.iter_modules(backends.__path__))


def _plugged() -> Plugged:
    return quantizer_plugins.look(_own_names())


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
