"""The demo's entries are what the recipes in the package make of the demo's targets.

Matrix products differ in their last bits between CPUs, and training carries
such a difference on. So bytes are compared first, and where another CPU makes
others, the weights: they may differ by what rounding explains and by nothing
that an update, a seed or a setting would change.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from harness.cli import main
from harness.mini import models
from harness.unlearn import recipes

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(
    path.parent.name
    for path in (ROOT / "submissions").glob("*/submission.yaml")
    if yaml.safe_load(path.read_text(encoding="utf-8"))["role"] == "entry"
)
_OF_THE_BUILD = ("build_sha256", "forget_data", "retain_data")
"""What `quench mini build` adds to a manifest, and `quench unlearn` does not."""

LARGEST_DIFFERENCE = 2e-4
"""Of the weights' norm: measured 3.8e-5 on a second CPU; another seed gives more than 100 times as much."""


@pytest.fixture
def _as_built(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, as the demo's build has: the order of additions decides the last bits."""
    monkeypatch.chdir(ROOT)
    with models.one_thread():
        yield


def stated(folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((folder / "submission.yaml").read_text(encoding="utf-8")))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor.double()
        for path in sorted((folder / "weights").glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    apart = sum(float((one[name] - other[name]).square().sum()) for name in one)
    return float((apart / sum(float(tensor.square().sum()) for tensor in other.values())) ** 0.5)


def test_there_are_nine_entries_and_each_names_a_recipe_of_the_package() -> None:
    assert len(SHIPPED) == 9
    for name in SHIPPED:
        assert stated(ROOT / "submissions" / name)["hyperparameters"]["recipe"] in recipes.recipe_names()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.usefixtures("_as_built")
def test_a_shipped_entry_is_what_its_recipe_makes(name: str, tmp_path: Path) -> None:
    shipped = ROOT / "submissions" / name
    wanted = stated(shipped)
    arguments = ["unlearn", wanted["hyperparameters"]["recipe"], "--target", wanted["target"],
                 "--out", str(tmp_path / name)]  # fmt: skip
    main.app(arguments, standalone_mode=False)
    made = stated(tmp_path / name)
    settings = {key: value for key, value in wanted["hyperparameters"].items() if key not in _OF_THE_BUILD}
    assert {key: made["hyperparameters"].get(key) for key in settings} == settings
    if made["weights_sha256"] != wanted["weights_sha256"]:
        assert distance(tensors(tmp_path / name), tensors(shipped)) < LARGEST_DIFFERENCE


@pytest.mark.slow
@pytest.mark.usefixtures("_as_built")
def test_another_seed_would_be_noticed(tmp_path: Path) -> None:
    name = "mini-npo-gdr-lora"
    main.app(["unlearn", "mini_npo_gdr_lora", "--target", "mini-target-4bit", "--seed", "1",
             "--out", str(tmp_path / name)], standalone_mode=False)  # fmt: skip
    assert distance(tensors(tmp_path / name), tensors(ROOT / "submissions" / name)) > 100 * LARGEST_DIFFERENCE
