"""What a submission's page shows of its update: figures as stored, and nothing where nothing was measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic_board as synthetic

from harness.publish.pages import site as site_pages
from harness.publish.pages.submission import shown
from harness.quantize.survival.measure import ALL_LAYERS
from harness.records import CellResult, LayerSurvival
from harness.store.store import Store

PLAN = synthetic.Plan(name="mine", levels=synthetic.LORA, kind="lora_adapter")


def _layer(name: str, rank: float | None = None, cosine: float | None = 0.5, **more: float) -> LayerSurvival:
    return LayerSurvival(
        layer=name, codes_changed=0.25, update_in_steps=None, relative_update=0.1, survival_ratio=None, cosine=cosine,
        num_weights=10, effective_rank=rank, **more,
    )  # fmt: skip


def _cells(*, old: Sequence[str] = ()) -> list[CellResult]:
    """Controls and an entry whose rows are from before norms and ranks under the quantizers ``old``."""
    cells = synthetic.cells([*synthetic.CONTROLS, PLAN], quantizers=("reference", "rtn-8bit-g128", "rtn-4bit-g128"))
    unmeasured = {"update_norm": None, "norm_ratio": None, "effective_rank": None}
    return [
        replace(cell, survival=tuple(replace(layer, **unmeasured) for layer in cell.survival))
        if cell.cell.quantizer in old else cell
        for cell in cells
    ]  # fmt: skip


def _page(folder: Path, cells: Sequence[CellResult]) -> str:
    with Store.open(folder / "s.duckdb") as store:
        for cell in cells:
            store.add(cell)
    out = site_pages.render(folder / "s.duckdb", folder / "out").parent
    return (out / "submission" / "mine.html").read_text(encoding="utf-8")


def _words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_blocks_are_rows_and_modules_columns_without_the_pooled_row() -> None:
    names = [ALL_LAYERS, "model.layers.0.mlp.up", "model.layers.0.attn.q", "model.layers.11.mlp.up"]
    (line,) = shown({"q": [_layer(name) for name in names]})["quantizers"]
    assert line["pooled"].layer == ALL_LAYERS
    assert line["modules"] == ["mlp.up", "attn.q"]
    assert [block for block, _ in line["layers"]] == ["0", "11"]
    found = [[cell["found"].layer if cell["found"] else None for cell in cells] for _, cells in line["layers"]]
    assert found == [names[1:3], [names[3], None]]


@pytest.mark.parametrize(
    ("cosine", "shade"), [(None, "none"), (-0.1, "0"), (0.2, "0"), (0.21, "1"), (0.5, "2"), (0.7, "3"), (0.99, "4")]
)
def test_the_shade_is_the_signal(cosine: float | None, shade: str) -> None:
    (line,) = shown({"q": [_layer("h.0.fc", cosine=cosine)]})["quantizers"]
    assert line["layers"][0][1][0]["shade"] == shade


def test_the_update_is_told_once_by_the_first_quantizer_that_has_measured_it() -> None:
    old = [_layer(ALL_LAYERS), _layer("h.0.fc"), _layer("h.1.fc")]
    new = [_layer(ALL_LAYERS), _layer("h.0.fc", rank=3.5, norm_ratio=1.2), _layer("h.1.fc", rank=8.25)]
    found = shown({"reference": (), "old": old, "new": new, "newer": new[:2]})
    assert [(line["quantizer"], line["measured"]) for line in found["quantizers"]] == [
        ("old", False), ("new", True), ("newer", True),
    ]  # fmt: skip
    assert (found["went_in"]["least"], found["went_in"]["most"]) == (3.5, 8.25)
    assert [layers for _, layers in found["went_in"]["layers"]] == [[new[1]], [new[2]]]


def test_without_ranks_there_is_no_update_to_tell_and_without_layers_nothing() -> None:
    assert shown({"old": [_layer("h.0.fc")]})["went_in"] is None
    assert shown({"reference": ()}) == {"went_in": None, "quantizers": []}


def test_the_page_says_what_the_update_is_and_what_comes_out(tmp_path: Path) -> None:
    html = _page(tmp_path, _cells())
    words = _words(html)
    assert "Quantizer Signal to noise Survival ratio Norm ratio Codes changed Update, in steps" in words
    assert "rtn-4bit-g128 0.95 0.95 1.00 30% 0.600" in words
    before = "The update before any quantizer: norm 1.500, 3.0% of the weights' own; effective rank of its layers"
    assert f"{before} 8.0 to 11.0." in words
    # Block 2: rank and norm before any quantizer, then signal, codes and noise under each.
    assert "2 10.0 0.400 10.0 0.400 10.0 0.400 10.0 0.400" in words
    assert words.count("2 0.95 30%, 1.00 0.95 30%, 1.00 0.95 30%, 1.00 0.95 30%, 1.00") == 2
    assert "all layers" not in words, "the pooled row is no layer"


def test_rows_from_before_are_shown_without_what_they_lack(tmp_path: Path) -> None:
    words = _words(_page(tmp_path, _cells(old=("rtn-8bit-g128", "rtn-4bit-g128"))))
    assert "rtn-4bit-g128 0.95 0.95 – 30% 0.600" in words  # noqa: RUF001 - as pages write it
    assert "before any quantizer" not in words
    assert "The update, layer by layer" not in words
    assert "2 0.95 30% 0.95 30% 0.95 30% 0.95 30%" in words
    assert "norm ratio." not in words


def test_a_store_with_both_tells_the_update_and_marks_what_is_not_measured(tmp_path: Path) -> None:
    words = _words(_page(tmp_path, _cells(old=("rtn-8bit-g128",))))
    assert words.count("The update, layer by layer") == 1
    assert words.count("Small: codes changed.") == 1
    assert words.count("Small: codes changed, norm ratio.") == 1


def test_rows_without_a_pooled_one_show_dashes(tmp_path: Path) -> None:
    cells = [replace(cell, survival=cell.survival[1:]) for cell in _cells()]
    words = _words(_page(tmp_path, cells))
    assert "rtn-4bit-g128 – – – – –" in words  # noqa: RUF001 - as pages write it
    assert "The update before any quantizer: effective rank of its layers 8.0 to 11.0." in words


def test_without_any_survival_the_page_asks_no_question(tmp_path: Path) -> None:
    words = _words(_page(tmp_path, [replace(cell, survival=()) for cell in _cells()]))
    assert "Does the update survive" not in words
