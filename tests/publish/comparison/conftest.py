"""Comparisons are tested with every draw: the smallest p depends on it."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def draws() -> None:
    """Takes the place of the fixture of the folder above."""
