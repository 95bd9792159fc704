"""Statistics are tested with every draw."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def draws() -> None:
    """Takes the place of the fixture of the folder above."""
