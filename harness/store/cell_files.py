"""One JSON record per cell: workers write it, machines exchange it, a store is rebuilt from it."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from harness.errors import StoreError
from harness.records import CellResult

SCHEMA = "quench.cell/1"
"""First field of every record; another one is refused."""

_ADAPTER = TypeAdapter(CellResult)
_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")


def write(result: CellResult, folder: Path) -> Path:
    """Writes one record so that it is there as a whole or not at all, and returns its path.

    Args:
        result: The outcome of a cell.
        folder: Created when absent; the file is called ``<key>.json``.

    Raises:
        StoreError: The key is no file name, a number is NaN or infinite, or a text is no Unicode.
    """
    if not _KEY.fullmatch(result.cell.key):
        raise StoreError(
            f"The key {result.cell.key!r} of cell {_name(result)} is no file name: keys are SHA-256 in hexadecimal."
        )
    try:
        text = to_json(result).encode("utf-8")
    except UnicodeEncodeError as error:
        raise StoreError(
            f"A text of cell {_name(result)} holds half a surrogate pair, which UTF-8 can't express: replace it."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.cell.key}.json"
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(folder)
    return path


def read(path: Path) -> CellResult:
    """Returns the record in a file, validated field by field.

    Raises:
        StoreError: The file can't be read or is no cell record of this schema.
    """
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"The cell record {path} can't be read ({error.strerror}): check that it is there.") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{path} is no cell record ({_first_line(error)}): remove it, or run its cell again."
        ) from error


def to_json(result: CellResult) -> str:
    """Returns a record as one line of JSON.

    Raises:
        StoreError: A number is NaN or infinite, or a value is none that JSON has.
    """
    refuse_nan(result)
    try:
        body = _ADAPTER.dump_python(result, mode="json", warnings="error")
    except (PydanticSerializationError, OverflowError) as error:
        raise StoreError(f"Cell {_name(result)} can't be recorded: {' '.join(str(error).split())}") from error
    return json.dumps({"schema": SCHEMA, **body}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def from_json(text: str) -> CellResult:
    """Returns the record that ``to_json`` wrote.

    Raises:
        ValueError: The text is no such record; the message says where.
    """
    body = json.loads(text, parse_constant=_refuse_constant)
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA!r}")
    del body["schema"]
    try:
        # Strict in JSON mode: lists become tuples, but "1" is no number.
        result = _ADAPTER.validate_json(json.dumps(body), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"field {place}: {first['msg']}") from error
    refuse_nan(result)
    return result


def refuse_nan(result: CellResult) -> None:
    """Checks that every number of a result is finite.

    Raises:
        StoreError: One is not; the message names it. A missing value is None with a reason.
    """
    found = _not_finite(result)
    if found is not None:
        place, value = found
        raise StoreError(
            f"Cell {_name(result)} has {value} as {place.strip('.')}: a store takes finite numbers, "
            "or none at all with the reason why it is missing."
        )


def _not_finite(value: Any) -> tuple[str, float] | None:
    """Returns the first NaN or infinity at any depth and its place, such as ``.documents[3].scores[auc]``.

    Records in a list are called after their first field: metric, index, layer.
    """
    if isinstance(value, float):
        return None if math.isfinite(value) else ("", value)
    if value is None or isinstance(value, str | int):
        return None
    inside: Iterable[tuple[str, Any]] = ()
    if names := _fields(value):
        inside = ((f".{name}", getattr(value, name)) for name in names)
    elif isinstance(value, Mapping):
        inside = ((f"[{key}]", inner) for key, inner in value.items())
    elif isinstance(value, list | tuple):
        inside = ((f"[{_called(inner, number)}]", inner) for number, inner in enumerate(value))
    for place, inner in inside:
        if (found := _not_finite(inner)) is not None:
            return place + found[0], found[1]
    return None


def _fields(record: Any) -> tuple[str, ...]:
    return tuple(getattr(record, "__dataclass_fields__", ()))


def _called(record: Any, number: int) -> Any:
    names = _fields(record)
    return getattr(record, names[0]) if names else number


def _name(result: CellResult) -> str:
    return f"{result.cell.submission} x {result.cell.quantizer} x {result.cell.task}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
