"""Reading lm-eval task YAMLs without lm-eval: for settings and digests.

Functions are never imported here; ``!function a.b`` stays the text it is.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from harness.errors import CorpusError, one_line


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that knows lm-eval's one extra tag."""


def _function(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.YAMLError("!function takes the name of a function")
    return f"!function {loader.construct_scalar(node)}"


_Loader.add_constructor("!function", _function)


@lru_cache(maxsize=256)
def _parse(path: Path, modified_ns: int) -> dict[str, Any]:
    try:
        # A subclass of SafeLoader: it constructs nothing but plain values.
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = one_line(error)
        raise CorpusError(f"The task file {path} can't be read ({reason}): restore it.") from None
    if not isinstance(value, dict):
        raise CorpusError(f"The task file {path} must be a mapping: restore it.")
    return value


def read_mapping(path: Path) -> dict[str, Any]:
    """Returns what stands in one YAML, without what it includes.

    Raises:
        CorpusError: It is missing, broken or no mapping.
    """
    if not path.is_file():
        raise CorpusError(f"The task file {path} is missing: restore it.")
    return dict(_parse(path, path.stat().st_mtime_ns))


def read_task(path: Path) -> dict[str, Any]:
    """Returns a task's configuration with its included files merged below it, as lm-eval does.

    Raises:
        CorpusError: A file is missing, broken, or includes itself.
    """
    return _read(path.resolve(), ())


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path in above:
        raise CorpusError(f"The task file {path} includes itself: remove that 'include'.")
    own = read_mapping(path)
    includes = own.pop("include", [])
    merged: dict[str, Any] = {}
    for name in includes if isinstance(includes, list) else [includes]:
        if not isinstance(name, str):
            raise CorpusError(f"The task file {path} has an 'include' that is no file name: give names of YAML files.")
        merged |= _read((path.parent / name).resolve(), (*above, path))
    return merged | own
