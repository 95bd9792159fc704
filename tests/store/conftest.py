"""One cell, and changes to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.records import (
    Cell,
    CellResult,
    DocumentRecord,
    LayerSurvival,
    Proof,
    Provenance,
    QuantizerSpec,
    Score,
    Submission,
)

_SUBMISSION = Submission(
    name="npo-full", title="NPO, all weights", method="NPO", corpus="mini", kind="full_model", role="entry",
    target="mini-target", retrain="mini-retrain", base_model=None, base_revision=None, weights="weights",
    revision=None, weights_sha256="d" * 64, folder="npo-full", hyperparameters={"lr": 1e-4, "steps": [1, 2]},
    authors=("A. Author", "B. Author"),
)  # fmt: skip
_SPEC = QuantizerSpec(
    name="rtn-4bit-g128", backend="rtn", bits=4, group_size=128, symmetric=False, label="RTN 4 bit, group 128",
    options={"clip": None},
)  # fmt: skip
_PROOF = Proof(
    linear_layers=2, quantized_layers=2, parameter_share=1.0, max_levels=16, group_size=128, bits_per_weight=4.25,
    size_bytes=4096, max_abs_error=0.01, relative_error=0.1, codes_sha256="c" * 64, dense_modules=("lm_head",),
    remarks=("none",),
)  # fmt: skip
_PROVENANCE = Provenance(
    created_at="2026-11-02T10:00:00+00:00", versions={"torch": "2.13.0"}, git_commit="a" * 40, dirty=False,
    device="cpu", threads=1, seed=0, scoring_version=1,
)  # fmt: skip


def _document(index: int) -> DocumentRecord:
    return DocumentRecord(
        index=index, split="forget_qa", prompt_sha256=f"{index:064d}", prompt_excerpt=f"Question {index}: who?",
        response="Nobody.", reference_sha256=f"{index + 500:064d}", reference_excerpt="Somebody.",
        scores={"knowmem_f": index / 7, "rouge1": 0.1},
    )  # fmt: skip


class MakeCell:
    """Makes results that differ where asked for."""

    def __call__(self, key: str = "a" * 64, *, quantizer: str = "rtn-4bit-g128", **changes: Any) -> CellResult:
        result = CellResult(
            cell=Cell(submission="npo-full", quantizer=quantizer, task="muse_mini_knowmem_f", key=key),
            submission=_SUBMISSION,
            spec=replace(_SPEC, name=quantizer),
            corpus="mini",
            status="finished",
            provenance=_PROVENANCE,
            scores=(Score(metric="knowmem_f", value=0.25, num_docs=3),),
            documents=tuple(_document(index) for index in range(3)),
            proof=_PROOF,
            survival=(
                LayerSurvival(
                    layer="model.layers.0.mlp.up_proj", codes_changed=0.5, update_in_steps=0.1, relative_update=0.01,
                    survival_ratio=None, cosine=0.7, num_weights=1024,
                ),
            ),
            timings={"score": 1.5},
            peak_memory_bytes=2**33,
        )  # fmt: skip
        return replace(result, **changes)


@pytest.fixture
def make_cell() -> MakeCell:
    return MakeCell()
