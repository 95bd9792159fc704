"""Which quantization libraries are installed, asked without importing any of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata


def version_of(distribution: str) -> str | None:
    """Returns the version of an installed distribution, None where it is absent.

    Not cached: a library may be installed while a program runs, and tests
    take some away.
    """
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def missing_reason(spec_name: str, distributions: Sequence[str], *, extra: str = "quantizers") -> str | None:
    """Returns one sentence that says what ``spec_name`` lacks and how to get it; None where all is there.

    Args:
        spec_name: Full name of the preset.
        distributions: What it needs, as the package index names them.
        extra: The extra of this distribution that brings them.
    """
    missing = [name for name in distributions if version_of(name) is None]
    if not missing:
        return None
    return f"{spec_name} needs {' and '.join(missing)}, not installed here: run pip install 'quench-bench[{extra}]'."
