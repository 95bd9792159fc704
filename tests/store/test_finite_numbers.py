"""No float of a record, wherever it stands, may be NaN or infinite; the refusal names the place."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from harness.errors import StoreError
from harness.records import CellResult, Score
from harness.store import cell_files

ADAPTER = TypeAdapter(CellResult)


def filled(kind: Any) -> Any:
    """Returns a value of a record's type with every optional field and one item in every list and mapping."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {field.name: filled(hints[field.name]) for field in dataclasses.fields(kind)}
    if origin in (types.UnionType, typing.Union):
        return filled(next(each for each in inner if each is not type(None)))
    if origin is typing.Literal:
        return inner[0]
    if origin is tuple:
        return [filled(inner[0])]
    if origin is not None:
        return {"key": filled(inner[1])}
    return {float: 0.5, int: 3, str: "text", bool: True}.get(kind, [{"nested": [0.5]}])


def floats(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, float):
        yield place
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from floats(inner, (*place, key))


BODY = filled(CellResult)
PLACES = list(floats(BODY))


def changed(place: tuple[Any, ...], value: float) -> CellResult:
    body = json.loads(json.dumps(BODY))
    inner = body
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return ADAPTER.validate_python(body)


def test_the_filled_record_has_every_kind_of_number_and_is_accepted() -> None:
    cell_files.refuse_nan(ADAPTER.validate_python(BODY))
    names = {key for place in PLACES for key in place}
    assert {"value", "scores", "timings", "native_max_difference", "effective_rank", "hyperparameters"} <= names
    assert len(PLACES) > 18


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_whichever_float_is_not_finite_the_record_is_refused_and_the_field_named(value: float) -> None:
    for place in PLACES:
        field = [str(key) for key in place if isinstance(key, str)][-1]
        with pytest.raises(StoreError, match="finite numbers") as refused:
            cell_files.to_json(changed(place, value))
        assert field in str(refused.value)


def test_the_sentence_names_metric_document_and_layer(make_cell: Any) -> None:
    cell = make_cell(scores=(Score(metric="auc", value=math.inf, num_docs=1),))
    with pytest.raises(StoreError, match=r"has inf as scores\[auc\]\.value: "):
        cell_files.refuse_nan(cell)
    layer = dataclasses.replace(make_cell().survival[0], cosine=math.nan)
    with pytest.raises(StoreError, match=r"survival\[model\.layers\.0\.mlp\.up_proj\]\.cosine"):
        cell_files.refuse_nan(make_cell(survival=(layer,)))


def test_a_number_that_reads_as_infinite_is_refused_in_a_file(make_cell: Any) -> None:
    text = cell_files.to_json(make_cell()).replace('"score":1.5', '"score":1e999')
    with pytest.raises(StoreError, match=r"inf as timings\[score\]"):
        cell_files.from_json(text)


@pytest.mark.parametrize("value", [np.float32("nan"), np.float32(0.5), 10**400, "0.5", object()])
def test_what_json_does_not_have_is_refused_in_one_sentence(make_cell: Any, value: Any) -> None:
    with pytest.raises(StoreError, match="can't be recorded") as refused:
        cell_files.to_json(make_cell(scores=(Score(metric="auc", value=value, num_docs=1),)))
    assert "\n" not in str(refused.value)
