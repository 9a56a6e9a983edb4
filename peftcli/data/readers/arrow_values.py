"""Values of Arrow as JSON would hold them.

Columns give every object every key, so that a key which a row does not have is a null there, at any depth: such keys are
left out. Maps are objects. Columns of JSON text that say so (`arrow.json`) are read as JSON, with the nulls that stand
there.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

_JSON_TYPE = "arrow.json"


def plain_rows(batch: Any) -> list[dict[str, Any]]:
    """The rows of a record batch."""
    as_json = [field.name for field in batch.schema if getattr(field.type, "extension_name", None) == _JSON_TYPE]
    rows: list[dict[str, Any]] = batch.to_pylist()
    return [plain_row(row, as_json) for row in rows]


def plain_row(row: dict[str, Any], as_json: Collection[str] = ()) -> dict[str, Any]:
    """A row with its values as JSON; `as_json`: columns that hold JSON, as text or read already."""
    return {
        name: _json(value) if name in as_json else without_nulls(value) if isinstance(value, (list, dict)) else value
        for name, value in row.items()
    }


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def without_nulls(value: Any) -> Any:
    """A value without the keys whose value is null, at any depth; a list of pairs, as which maps arrive, as an object."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    if not isinstance(value, list):
        return value
    # Arrow gives maps as lists of pairs; no other type becomes a list of tuples
    if value and all(isinstance(part, tuple) and len(part) == 2 for part in value):
        return {str(key): without_nulls(part) for key, part in value if part is not None}
    return [without_nulls(part) for part in value]
