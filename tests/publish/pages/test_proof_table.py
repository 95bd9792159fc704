"""What pages and tables show of a proof: measured figures, what nobody knows, and what was not measured before."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic_board as synthetic

from harness.publish.pages import site as site_pages
from harness.publish.pages.submission import proof_in_words
from harness.publish.ranking.rank import rank
from harness.publish.tables import rows as table_rows
from harness.publish.thresholds import AS_SUBMITTED
from harness.records import CellResult, Proof, QuantizerSpec
from harness.store.store import Store

MEASURED = Proof(
    linear_layers=28, quantized_layers=28, parameter_share=1.0, max_levels=16, group_size=64, bits_per_weight=4.31,
    size_bytes=1000, max_abs_error=0.0123, relative_error=0.0912, codes_sha256="c" * 64, dense_modules=(),
    mean_abs_error=0.00321, symmetric=False,
)  # fmt: skip
UNKNOWN = replace(MEASURED, max_abs_error=None, relative_error=None, mean_abs_error=None, symmetric=True)


@pytest.mark.parametrize(
    ("proof", "expected"),
    [
        (MEASURED, ("asymmetric", "0.0123", "0.00321", "0.0912")),
        (replace(MEASURED, symmetric=True), ("symmetric", "0.0123", "0.00321", "0.0912")),
        (replace(MEASURED, symmetric=None), ("code book or shifts", "0.0123", "0.00321", "0.0912")),
        (UNKNOWN, ("symmetric", "not known", "not known", "not known")),
        (replace(UNKNOWN, symmetric=None), ("code book or shifts", "not known", "not known", "not known")),
        # A row of a store that is older than the two figures.
        (replace(MEASURED, mean_abs_error=None, symmetric=None), ("not measured", "0.0123", "not measured", "0.0912")),
    ],
)
def test_a_proof_says_what_is_known_and_why_the_rest_is_not(proof: Proof, expected: tuple[str, ...]) -> None:
    told = proof_in_words(proof)
    assert (told["symmetry"], told["max_abs"], told["mean_abs"], told["relative"]) == expected


@pytest.mark.parametrize(
    ("mean", "rounding", "told"),
    [
        (None, None, "not run"),
        (0.0101, 0.0112, "0.0101 (16-bit rounding: 0.0112)"),
        (0.5, 0.0112, "0.5000 (16-bit rounding: 0.0112): beyond rounding"),
        (0.2, 0.0, "0.2000 (16-bit rounding: 0.0000): beyond rounding"),
    ],
)
def test_a_kernel_that_is_further_off_than_16_bit_rounding_is_said_to_be(
    mean: float | None, rounding: float | None, told: str
) -> None:
    proof = replace(MEASURED, native_mean_difference=mean, native_rounding_difference=rounding)
    assert proof_in_words(proof)["native"] == told


def _cells() -> list[CellResult]:
    """Controls, a plain entry, and one that came quantized, measured under its own quantizer alone."""
    plain = synthetic.Plan(name="lora", levels=synthetic.LORA)
    packed = synthetic.Plan(name="packed", levels=synthetic.LORA, kind="quantized_checkpoint")
    cells = synthetic.cells([*synthetic.CONTROLS, plain], quantizers=("reference", "rtn-4bit-g128"))
    spec = QuantizerSpec(
        name="submitted-gptq-4bit-g64-sym", backend="submitted", bits=4, group_size=64, symmetric=True,
        label="as submitted: GPTQ 4-bit, group 64, symmetric", options={"method": "gptq"},
    )  # fmt: skip
    mine = synthetic.cells([packed], quantizers=("rtn-4bit-g128",))
    return [*cells, *(
        replace(cell, spec=spec, cell=replace(cell.cell, quantizer=spec.name), proof=UNKNOWN, survival=())
        for cell in mine
    )]  # fmt: skip


def test_an_entry_that_came_quantized_is_shown_unranked_with_the_reason() -> None:
    board = rank(_cells(), "mini")
    row = next(row for row in board.rows if row.submission.name == "packed")
    assert {at.unranked_reason for at in row.by_bits.values()} == {AS_SUBMITTED}
    assert row.by_quantizer["submitted-gptq-4bit-g64-sym"].metrics["verbmem_f"].score.value > 0
    other = next(row for row in board.rows if row.submission.name == "lora")
    assert other.by_bits[4].unranked_reason is None


def test_its_page_shows_the_proof_and_how_to_score_it_again(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.duckdb") as store:
        for cell in _cells():
            store.add(cell)
    out = site_pages.render(tmp_path / "s.duckdb", tmp_path / "out").parent
    text = re.sub(r"<[^>]+>", " ", (out / "submission" / "packed.html").read_text(encoding="utf-8"))
    words = " ".join(text.split())
    assert "quench run packed --corpus mini --quantizers reference --seed 0" in words
    assert "Grid found Largest error Mean error Relative error" in words
    assert "submitted-gptq-4bit-g64-sym 28 of 28 16 4.31 1,000 symmetric not known not known not known" in words
    before = " ".join(re.sub(r"<[^>]+>", " ", (out / "submission" / "lora.html").read_text(encoding="utf-8")).split())
    assert "not measured 0.0100 not measured 0.0800" in before


def test_rows_of_cells_carry_the_errors_and_the_symmetry_found() -> None:
    by_name = {}
    for row in table_rows.cell_rows(_cells()):
        by_name.setdefault((row["submission"], row["quantizer"]), row)
    mine = by_name["packed", "submitted-gptq-4bit-g64-sym"]
    assert (mine["bits_per_weight"], mine["symmetric"], mine["mean_abs_error"]) == (4.31, True, None)
    assert (mine["max_abs_error"], mine["relative_error"]) == (None, None)
    theirs = by_name["lora", "rtn-4bit-g128"]
    assert (theirs["max_abs_error"], theirs["relative_error"], theirs["mean_abs_error"]) == (0.01, 0.08, None)
    assert by_name["lora", "reference"]["bits_per_weight"] is None
