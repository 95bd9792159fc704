"""What quantizers leave of the shipped miniature's updates, without a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness import paths, quantize
from harness.errors import InputError, UnknownNameError
from harness.quantize.survival.measure import ALL_LAYERS
from harness.records import Submission
from harness.run.update_survival import survive
from harness.submit.manifest import load as manifest


@pytest.fixture(scope="module")
def shipped() -> dict[str, Submission]:
    return manifest.load_all(paths.content_dir("submissions"))


def _specs(*names: str) -> list:
    return [quantize.resolve(name) for name in names]


def test_the_miniature_s_figures_are_those_of_its_page(shipped: dict[str, Submission], tmp_path: Path) -> None:
    """docs/muse_mini.md: on the target's own grid 0.02 is left of a full update; on another one half of it, or all."""
    found = survive("mini-npo-gdr-full", None, _specs("rtn-4bit-g128", "rtn-4bit-g64", "bnb-nf4", "rtn-8bit-g128"),
                    shipped, cache=tmp_path)  # fmt: skip
    ratios = {name: rows[0].survival_ratio for name, rows in found.items()}
    assert ratios["rtn-4bit-g128"] == pytest.approx(0.02, abs=0.01)
    assert ratios["rtn-4bit-g64"] == pytest.approx(0.51, abs=0.02)
    assert ratios["bnb-nf4"] == pytest.approx(1.09, abs=0.02)
    assert ratios["rtn-8bit-g128"] == pytest.approx(1.0, abs=0.01)
    assert all(rows[0].layer == ALL_LAYERS and len(rows) == 29 for rows in found.values())


def test_an_adapter_s_update_has_its_rank_and_survives(shipped: dict[str, Submission], tmp_path: Path) -> None:
    rows = survive("mini-ga-gdr-lora", None, _specs("rtn-4bit-g128"), shipped, cache=tmp_path)["rtn-4bit-g128"]
    assert rows[0].survival_ratio == pytest.approx(0.98, abs=0.02)
    lora = [row.effective_rank for row in rows[1:]]
    assert max(lora) < 8.5, "rank 8, but for what rounding the merged weights to 16 bit adds"
    full = survive("mini-npo-gdr-full", None, _specs("rtn-4bit-g128"), shipped, cache=tmp_path)["rtn-4bit-g128"]
    ranks = [row.effective_rank for row in full[1:]]
    assert sum(ranks) > 2 * sum(lora)


def test_another_model_can_be_named_to_compare_with(shipped: dict[str, Submission], tmp_path: Path) -> None:
    rows = survive("mini-retrain", "mini-target-plain", _specs("rtn-4bit-g64"), shipped, cache=tmp_path)
    assert rows["rtn-4bit-g64"][0].relative_update > 0.1


def test_the_reference_quantizes_nothing_and_is_left_out(shipped: dict[str, Submission], tmp_path: Path) -> None:
    found = survive("mini-noop-lora", None, _specs("reference", "rtn-8bit-g128"), shipped, cache=tmp_path)
    assert list(found) == ["rtn-8bit-g128"]


def test_names_and_kinds_that_have_no_update_are_sentences(shipped: dict[str, Submission], tmp_path: Path) -> None:
    specs = _specs("rtn-4bit-g64")
    with pytest.raises(UnknownNameError, match="mini-noop-lora"):
        survive("mini-noop-lorra", None, specs, shipped, cache=tmp_path)
    with pytest.raises(InputError, match="has no target to compare with"):
        survive("mini-retrain", None, specs, shipped, cache=tmp_path)
    quantized = dataclasses.replace(shipped["mini-noop-lora"], kind="quantized_checkpoint")
    with pytest.raises(InputError, match="is quantized already"):
        survive("mini-noop-lora", None, specs, shipped | {"mini-noop-lora": quantized}, cache=tmp_path)


def test_quantizers_that_look_at_activations_are_calibrated_on_the_corpus(
    shipped: dict[str, Submission], tmp_path: Path
) -> None:
    pytest.importorskip("gptqmodel")
    found = survive("mini-npo-gdr-full", None, _specs("gptq-4bit-g128-sym"), shipped, cache=tmp_path)
    assert found["gptq-4bit-g128-sym"][0].survival_ratio == pytest.approx(0.87, abs=0.05)
