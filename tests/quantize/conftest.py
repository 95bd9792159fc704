"""Tiny random models of the shapes that quantizers must bear, saved as bfloat16; an update of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from harness.contract.fixtures import calibration_texts, checkpoint_of
from harness.contract.tiny_models import WORDS, save_tokenizer
from harness.records import Checkpoint

__all__ = ["WORDS", "calibration_texts", "checkpoint_of", "save_tokenizer"]


@pytest.fixture
def moved(tmp_path: Path) -> Callable[[Checkpoint, float], Checkpoint]:
    """Copies a checkpoint with ``size`` times noise added to every block linear: an update."""

    def move(checkpoint: Checkpoint, size: float) -> Checkpoint:
        import torch

        from harness.quantize.models.dense import block_linears, load_dense

        model = load_dense(checkpoint, device="cpu")
        noise = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for linear in block_linears(model).values():
                linear.weight += size * torch.randn(linear.weight.shape, generator=noise)
        folder = tmp_path / f"moved-{size}"
        model.bfloat16().save_pretrained(folder)
        return Checkpoint(
            path=str(folder), tokenizer_path=str(folder), dtype="bfloat16", sha256="1" * 64, merged_from_adapter=False
        )

    return move


@pytest.fixture
def add_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, object], None]]:
    """Puts a module with this ``BACKEND`` beside Quench's own for one test."""
    from harness import quantize
    from harness.quantize import backends

    def add(name: str, backend: object) -> None:
        (tmp_path / f"{name}.py").touch()
        module = ModuleType(f"{backends.__name__}.{name}")
        module.BACKEND = backend  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path)])
        quantize.discover.cache_clear()

    yield add
    monkeypatch.undo()
    quantize.discover.cache_clear()
