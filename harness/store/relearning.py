"""Relearning probes in a store: their record and their table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import duckdb

from harness.store import rows


@dataclass(frozen=True, slots=True, kw_only=True)
class RelearningStep:
    """What a model knew after some training steps; means over documents that it was not trained on, but for one.

    Attributes:
        step: Training steps so far.
        verbmem: VerbMem, a fraction.
        extraction_strength: Of the references, teacher-forced.
        reference_nll: Mean negative log-likelihood of the references, nats
            per token; None where it is not finite.
        verbmem_shown: VerbMem of the documents that it was trained on.
    """

    step: int
    verbmem: float
    extraction_strength: float | None
    reference_nll: float | None
    verbmem_shown: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Relearning:
    """One probe of one submission under one quantizer.

    Attributes:
        key: Digest of everything that can move its numbers.
        submission: Whose model it is: an entry or, as its control, a retrained model.
        weights_sha256: Digest of the submission's weights.
        target: Submission that ``goal`` is of.
        recipe_sha256: Digest of how it was trained and asked.
        documents: How many were trained on; as many others were asked about.
        goal: VerbMem of the target under the same quantizer, a fraction.
        half_step: First measured step at which half of the way to ``goal`` is done.
        reason: Why there is none.
        curve: What the model knew, step 0 first.
        seconds: Wall-clock time, quantizing left out.
        created_at: ISO 8601, UTC.
    """

    key: str
    submission: str
    weights_sha256: str
    target: str
    corpus: str
    quantizer: str
    recipe_sha256: str
    documents: int
    goal: float
    half_step: int | None
    reason: str | None
    curve: tuple[RelearningStep, ...]
    device: str
    seconds: float
    created_at: str


def insert(connection: duckdb.DuckDBPyConnection, probe: Relearning) -> None:
    """Writes a probe; one of the same key is replaced."""
    row: dict[str, Any] = asdict(probe)
    row["curve"] = json.dumps(row["curve"], allow_nan=False, separators=(",", ":"))
    connection.execute("DELETE FROM relearning WHERE key = ?", [probe.key])
    rows.insert(connection, "relearning", [row])


def read(connection: duckdb.DuckDBPyConnection) -> list[Relearning]:
    """Returns every probe, by corpus, quantizer and submission."""
    names = ", ".join(field.name for field in fields(Relearning))
    found = rows.fetch(connection, f"SELECT {names} FROM relearning ORDER BY corpus, quantizer, submission, key")
    return [
        Relearning(**{**row, "curve": tuple(RelearningStep(**step) for step in json.loads(row["curve"]))})
        for row in found
    ]
