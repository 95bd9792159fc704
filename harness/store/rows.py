"""Records to table rows and back: the only module that knows the columns."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from harness.provenance import sha256_json
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

Row = dict[str, Any]

# What a manifest asks of its base is no part of a result, whose key holds the base's digest.
_KEPT = tuple(name for name in Submission.__slots__ if name != "base_sha256")
_SUBMISSION = tuple(name for name in _KEPT if name != "authors")
_SPEC = tuple(QuantizerSpec.__slots__)
_PROOF = tuple(Proof.__slots__)
_LAYER = tuple(LayerSurvival.__slots__)
_JSON = {"hyperparameters", "options"}
_LISTS = {"dense_modules", "remarks"}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def submission_row(submission: Submission) -> Row:
    """Returns the columns of ``submissions`` without its id."""
    row: Row = {name: getattr(submission, name) for name in _SUBMISSION}
    row["hyperparameters"] = _json(dict(submission.hyperparameters))
    row["authors"] = list(submission.authors)
    # Without it where there is none: snapshots from before this field keep their digest.
    digested = row if submission.seed_of is not None else {name: row[name] for name in row if name != "seed_of"}
    return {"digest": sha256_json(digested), **row}


def quantizer_row(spec: QuantizerSpec) -> Row:
    """Returns the columns of ``quantizers`` without its id."""
    row: Row = {name: getattr(spec, name) for name in _SPEC}
    row["options"] = _json(dict(spec.options))
    return {"digest": sha256_json(row), **row}


def layer_rows(survival: Sequence[LayerSurvival]) -> list[Row]:
    """Returns the columns of ``survival`` without the model's id."""
    return [
        {"position": position, **{name: getattr(layer, name) for name in _LAYER}}
        for position, layer in enumerate(survival)
    ]


def model_row(result: CellResult) -> Row | None:
    """Returns the columns of ``quantized_models`` without its id, None where a cell has no proof and no survival."""
    if result.proof is None and not result.survival:
        return None
    row: Row = {
        "submission": result.cell.submission, "quantizer": result.cell.quantizer, "proven": result.proof is not None,
        **{name: None if result.proof is None else getattr(result.proof, name) for name in _PROOF},
    }  # fmt: skip
    for name in _LISTS:
        row[name] = None if row[name] is None else list(row[name])
    return {"digest": sha256_json([row, layer_rows(result.survival)]), **row}


def cell_row(result: CellResult) -> Row:
    """Returns the columns of ``cells`` that do not point to other tables."""
    cell, made = result.cell, result.provenance
    return {
        "key": cell.key, "submission": cell.submission, "quantizer": cell.quantizer, "task": cell.task,
        "corpus": result.corpus, "status": result.status, "reason": result.reason, "stage": result.stage,
        "error_type": result.error_type, "log_tail": result.log_tail, "document_limit": cell.limit,
        "remarks": list(result.remarks), "timings": _json(dict(result.timings)),
        "peak_memory_bytes": result.peak_memory_bytes, "created_at": made.created_at, "git_commit": made.git_commit,
        "dirty": made.dirty, "device": made.device, "threads": made.threads, "seed": made.seed,
        "scoring_version": made.scoring_version, "versions": _json(dict(made.versions)), "origin": result.origin,
    }  # fmt: skip


def score_rows(scores: Sequence[Score]) -> list[Row]:
    """Returns the columns of ``scores`` without the cell's id."""
    return [
        {"position": position, **{name: getattr(score, name) for name in Score.__slots__}}
        for position, score in enumerate(scores)
    ]


def insert(connection: duckdb.DuckDBPyConnection, table: str, rows: Sequence[Row]) -> None:
    """Inserts rows of the same columns in one statement; the columns are this module's, never a user's."""
    if rows:
        columns = ", ".join(f'"{name}"' for name in rows[0])
        marks = ", ".join(f"({', '.join('?' for _ in row)})" for row in rows)
        values = [value for row in rows for value in row.values()]
        connection.execute(f"INSERT INTO {table} ({columns}) VALUES {marks}", values)


def fetch(connection: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[Any] = ()) -> list[Row]:
    """Returns the rows of a query as dicts by column name."""
    cursor = connection.execute(query, list(parameters))
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _record(kind: Any, names: Sequence[str], row: Row) -> Any:
    fields = {name: row[name] for name in names}
    for name, value in fields.items():
        if name in _JSON:
            fields[name] = json.loads(value)
        elif isinstance(value, list):
            fields[name] = tuple(value)
    return kind(**fields)


def read_submissions(connection: duckdb.DuckDBPyConnection) -> dict[int, Submission]:
    """Returns the manifest snapshots by id."""
    names = _KEPT
    return {row["id"]: _record(Submission, names, row) for row in fetch(connection, "SELECT * FROM submissions")}


def read_quantizers(connection: duckdb.DuckDBPyConnection) -> dict[int, QuantizerSpec]:
    """Returns the quantizer snapshots by id."""
    return {row["id"]: _record(QuantizerSpec, _SPEC, row) for row in fetch(connection, "SELECT * FROM quantizers")}


def read_models(
    connection: duckdb.DuckDBPyConnection,
) -> dict[int | None, tuple[Proof | None, tuple[LayerSurvival, ...]]]:
    """Returns proof and survival by model id; the id None has neither."""
    layers: dict[int, list[LayerSurvival]] = defaultdict(list)
    for row in fetch(connection, "SELECT * FROM survival ORDER BY model_id, position"):
        layers[row["model_id"]].append(_record(LayerSurvival, _LAYER, row))
    models: dict[int | None, tuple[Proof | None, tuple[LayerSurvival, ...]]] = {None: (None, ())}
    for row in fetch(connection, "SELECT * FROM quantized_models"):
        proof = _record(Proof, _PROOF, row) if row["proven"] else None
        models[row["id"]] = (proof, tuple(layers[row["id"]]))
    return models


def read_scores(connection: duckdb.DuckDBPyConnection) -> Mapping[int, list[Score]]:
    """Returns the scores by cell id, in the order they were made."""
    scores: dict[int, list[Score]] = defaultdict(list)
    for row in fetch(connection, "SELECT * FROM scores ORDER BY cell_id, position"):
        scores[row["cell_id"]].append(
            Score(
                metric=row["metric"],
                value=row["value"],
                num_docs=row["num_docs"],
                missing_reason=row["missing_reason"],
            )
        )
    return scores


def read_documents(
    connection: duckdb.DuckDBPyConnection, where: str = "true", parameters: Sequence[Any] = ()
) -> Mapping[int, list[DocumentRecord]]:
    """Returns the documents by cell id, in the order they were made."""
    texts = {row[0]: (row[1], row[2]) for row in connection.execute("FROM texts").fetchall()}
    answers = dict(connection.execute("FROM answers").fetchall())
    # Keys and values apart: a list of numbers crosses into Python several times faster than a MAP.
    found = connection.execute(
        "SELECT cell_id, document, split, prompt_id, answer_id, reference_id, reference_excerpt, map_keys(scores), "
        f"map_values(scores), invalid_reason FROM document_rows WHERE {where} ORDER BY cell_id, position",
        list(parameters),
    ).fetchall()
    documents: dict[int, list[DocumentRecord]] = defaultdict(list)
    for cell, index, split, prompt, answer, reference, excerpt, metrics, values, invalid in found:
        sha, text = (None, excerpt) if reference is None else texts[reference]
        documents[cell].append(
            DocumentRecord(
                index=index,
                split=split,
                prompt_sha256=texts[prompt][0],
                prompt_excerpt=texts[prompt][1],
                response=answers[answer],
                reference_sha256=sha,
                reference_excerpt=text,
                scores=dict(zip(metrics, values, strict=True)),
                invalid_reason=invalid,
            )
        )
    return documents


def read_cell(
    row: Row,
    submission: Submission,
    spec: QuantizerSpec,
    model: tuple[Proof | None, tuple[LayerSurvival, ...]],
    scores: Sequence[Score],
    documents: Sequence[DocumentRecord],
) -> CellResult:
    """Returns the result that a row of ``cells`` and what it points to hold."""
    return CellResult(
        cell=Cell(
            submission=row["submission"],
            quantizer=row["quantizer"],
            task=row["task"],
            key=row["key"],
            limit=row["document_limit"],
        ),
        submission=submission,
        spec=spec,
        corpus=row["corpus"],
        status=row["status"],
        provenance=Provenance(
            created_at=row["created_at"],
            versions=json.loads(row["versions"]),
            git_commit=row["git_commit"],
            dirty=row["dirty"],
            device=row["device"],
            threads=row["threads"],
            seed=row["seed"],
            scoring_version=row["scoring_version"],
        ),
        scores=tuple(scores),
        documents=tuple(documents),
        proof=model[0],
        survival=model[1],
        reason=row["reason"],
        stage=row["stage"],
        error_type=row["error_type"],
        log_tail=row["log_tail"],
        remarks=tuple(row["remarks"]),
        timings=json.loads(row["timings"]),
        peak_memory_bytes=row["peak_memory_bytes"],
        origin=row["origin"],
    )
