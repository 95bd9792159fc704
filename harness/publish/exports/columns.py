"""Columns of exported tables: names and types, as JSON Schema and as SQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from harness.publish.thresholds import FORGET_METRICS
from harness.score.metrics.formulas import PRIMARY

Holds = Literal["text", "integer", "number", "flag", "texts"]

VERSION = 1
"""Of the schema: goes up when a column vanishes or changes its meaning, not when one is added."""

SQL_TYPES: Mapping[Holds, str] = {
    "text": "VARCHAR", "integer": "BIGINT", "number": "DOUBLE", "flag": "BOOLEAN", "texts": "VARCHAR[]",
}  # fmt: skip
_JSON_TYPES: Mapping[Holds, str] = {"text": "string", "integer": "integer", "number": "number", "flag": "boolean"}
_ALWAYS = frozenset({"submission", "corpus", "bits", "verdict", "quantizer", "task", "status", "key", "method", "kind"})


def _columns(text: str) -> Iterator[tuple[str, Holds]]:
    """Yields columns of a list such as ``rank:integer rho:interval``; an interval is a number with its ends."""
    for word in text.split():
        name, _, holds = word.partition(":")
        if holds == "interval":
            yield from ((f"{name}{end}", "number") for end in ("", "_low", "_high"))
        else:
            yield name, holds or "text"  # type: ignore[misc]


def _per_metric(template: str, metrics: Iterable[str]) -> str:
    return " ".join(template.replace("METRIC", metric) for metric in metrics)


_SCORES = _per_metric("METRIC:interval", PRIMARY)

BOARD: Mapping[str, Holds] = dict(
    _columns(
        "rank:integer tier:integer submission title method kind corpus target bits:integer quantizer quantizers:texts"
        " verdict verdict_basis verdict_reason worst_metric rho:interval recovery:interval "
        + _per_metric("rho_METRIC:interval recovery_METRIC:interval ", FORGET_METRICS)
        + _per_metric(
            "worst_rho_METRIC:interval worst_recovery_METRIC:interval worst_quantizer_METRIC ", FORGET_METRICS
        )
        + f"utility_share:interval utility_quantizer {_SCORES} privleak_quantizer unranked_reason durable:flag"
        " durable_proven:flag seeds:integer seeds_rho:interval seeds_rho_least:number seeds_rho_most:number"
        " seeds_rho_deviation:number seeds_durable:integer few_documents:texts flags:texts"
    )
)
"""Columns of the board, one row per entry and bit width (``rows.ranked_rows`` says what they mean)."""

CELLS: Mapping[str, Holds] = dict(
    _columns(
        f"submission quantizer task status origin corpus bits:integer method kind {_SCORES} verdict change:interval"
        " rho:interval recovery:interval recovered_share:interval robustness:interval change_p:number"
        " few_documents:texts num_docs:integer reason stage error_type limit:integer bits_per_weight:number"
        " max_abs_error:number mean_abs_error:number relative_error:number symmetric:flag"
        " native_max_difference:number native_mean_difference:number native_rounding_difference:number seconds:number"
        " peak_memory_bytes:integer remarks:texts created_at git_commit dirty:flag device seed:integer"
        " scoring_version:integer key"
    )
)
"""Columns of cells (``rows.cell_rows``); every secondary metric has one more, a number."""


def types_of(rows: Iterable[Mapping[str, Any]], known: Mapping[str, Holds]) -> dict[str, Holds]:
    """Returns the columns of rows in their order; a name that is not ``known`` is a secondary metric."""
    names = dict.fromkeys(name for row in rows for name in row) or known
    return {name: known.get(name, "number") for name in names}


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of ``board.json`` and ``cells.json``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Quench board and cells",
        "description": "Scores are shown times 100, PrivLeak in percent; shares and recoveries are fractions.",
        "version": VERSION,
        "type": "object",
        "required": ["schema", "title", "store_sha256", "scoring_version", "rows"],
        "properties": {
            "schema": {"enum": [f"quench.board/{VERSION}", f"quench.cells/{VERSION}"]},
            "title": {"type": "string"},
            "store_sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            "scoring_version": {"type": "integer", "minimum": 0},
        },
        "if": {"properties": {"schema": {"const": f"quench.board/{VERSION}"}}},
        "then": {"properties": {"rows": {"type": "array", "items": {"$ref": "#/$defs/board_row"}}}},
        "else": {"properties": {"rows": {"type": "array", "items": {"$ref": "#/$defs/cell_row"}}}},
        "$defs": {
            "board_row": _row_schema(BOARD),
            "cell_row": _row_schema(CELLS) | {"additionalProperties": {"type": ["number", "null"]}},
        },
    }


def _row_schema(columns: Mapping[str, Holds]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, holds in columns.items():
        if holds == "texts":
            properties[name] = {"type": "array", "items": {"type": "string"}}
        else:
            # A control's cell and a failed one have no verdict, a width without a backend no quantizer.
            optional = name not in _ALWAYS or (name == "verdict" and columns is CELLS)
            optional = optional or (name == "quantizer" and columns is BOARD)
            properties[name] = {"type": [_JSON_TYPES[holds], "null"] if optional else _JSON_TYPES[holds]}
    return {"type": "object", "required": list(columns), "properties": properties}
