"""Backends of installed packages: each is checked once, and a broken one does not stop the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from harness import plugins
from harness.errors import PluginError, QuantizationError, one_line
from harness.plugins import Plugin
from harness.quantize.backend import WIDTHS, Quantizer
from harness.quantize.calibration import recipe_of
from harness.records import QuantizerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugged:
    """What installed packages add to the backends.

    Attributes:
        usable: Backends by name.
        broken: By name, one sentence why a declared one can't be used.
        origins: By name, package and version of every declared one.
    """

    usable: Mapping[str, Quantizer]
    broken: Mapping[str, str]
    origins: Mapping[str, str]


@cache
def look(taken: frozenset[str]) -> Plugged:
    """Returns the backends that installed packages declare, loaded and checked.

    Args:
        taken: Names that none of them may have.
    """
    usable: dict[str, Quantizer] = {}
    broken: dict[str, str] = {}
    origins: dict[str, str] = {}
    for plugin in plugins.found(plugins.QUANTIZERS):
        try:
            plugins.check_name(plugin, taken)
            usable[plugin.name] = _checked(plugin)
        except PluginError as error:
            # A name of Quench's own stays Quench's: its row in a table must not be confused with this one.
            broken[plugin.name if plugin.name not in taken else f"{plugin.name} ({plugin.package})"] = str(error)
        if plugin.name not in taken:
            origins[plugin.name] = plugin.origin
    return Plugged(usable=MappingProxyType(usable), broken=MappingProxyType(broken), origins=MappingProxyType(origins))


def _checked(plugin: Plugin) -> Quantizer:
    """Returns a plug-in's backend after all questions that tables and plans will ask of it.

    Raises:
        PluginError: An answer is none, or an exception.
    """
    loaded = plugins.load(plugin)
    backend = getattr(loaded, "BACKEND", loaded)
    if not isinstance(backend, Quantizer) or backend.backend != plugin.name:
        what = f"is no backend named {plugin.name!r}"
        raise plugin.refused(
            what, f"{plugin.module} needs a BACKEND with every member of harness.quantize.backend.Quantizer"
        )
    try:
        presets = backend.presets()
        wrong = next((fault for spec in presets if (fault := _fault(plugin, backend, spec))), None)
        backend.library_version()
        untold = [bits for bits in WIDTHS[1:] if bits not in {*backend.impossible, *(spec.bits for spec in presets)}]
    except Exception as error:
        what = f"fails when it is asked what it offers ({type(error).__name__}: {one_line(error)})"
        raise plugin.refused(what, f"repair it, or run pip uninstall {plugin.package}") from error
    if not presets:
        raise plugin.refused("offers no preset", "presets() must return at least one specification")
    if wrong is not None:
        raise plugin.refused(*wrong)
    if untold:
        what = f"says nothing of {', '.join(map(str, untold))} bit"
        raise plugin.refused(what, "every width needs a preset, or a reason in `impossible`")
    return backend


def _fault(plugin: Plugin, backend: Quantizer, spec: QuantizerSpec) -> tuple[str, str] | None:
    """Returns what is wrong with a preset and what to do, None where nothing is."""
    if not isinstance(spec, QuantizerSpec) or spec.backend != plugin.name:
        return f"has a preset {spec!r} that is not its own", f"give QuantizerSpec(..., backend={plugin.name!r})"
    if not spec.name.startswith(f"{plugin.name}-"):
        return f"has a preset named {spec.name!r}", f"names of its presets begin with {plugin.name + '-'!r}"
    if backend.parse(spec.name) != spec:
        return f"does not know its own preset {spec.name} by name", "parse(name) must return that very specification"
    try:
        recipe_of(spec)
    except QuantizationError as error:
        return f"has a preset that can't be calibrated ({error})", "name a known source of texts"
    backend.unavailable_reason(spec, "cpu")
    return None
