"""What a hub lists of a repository, from a local folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace


def blob_digest(content: bytes) -> str:
    """Returns the name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def listing(folder: Path) -> SimpleNamespace:
    """Returns what ``huggingface_hub.model_info`` does, as far as files are concerned: weights are in LFS."""
    siblings = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        lfs = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if path.suffix == ".safetensors" else None
        siblings.append(
            SimpleNamespace(rfilename=path.name, size=len(content), blob_id=blob_digest(content), lfs=lfs)
        )  # fmt: skip
    return SimpleNamespace(siblings=siblings, sha=None)
