"""Fixtures that the contract's tests and those of Quench's own backends share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.contract import tiny_models
from harness.records import Checkpoint


@pytest.fixture(scope="session")
def calibration_texts() -> tuple[str, ...]:
    """Texts of the tokenizer's own words, no two alike."""
    return tiny_models.calibration_texts()


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """Builds (once) the checkpoint of a model shape."""
    made: dict[str, Checkpoint] = {}

    def build(shape: str) -> Checkpoint:
        if shape not in made:
            made[shape] = tiny_models.checkpoint(shape, tmp_path_factory.mktemp(shape))
        return made[shape]

    return build
