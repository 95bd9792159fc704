"""What a hub lists of a repository, from a local folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace


def listing(folder: Path) -> SimpleNamespace:
    """Returns what ``huggingface_hub.model_info`` does, as far as files are concerned."""
    return SimpleNamespace(siblings=[SimpleNamespace(rfilename=path.name) for path in sorted(folder.iterdir())])
