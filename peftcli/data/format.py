"""What a format is, which one a source has and why, and how its columns are named."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from peftcli.data.faults import RowFault
from peftcli.data.names import ENTRY_POINT_GROUP, format_names, nearest
from peftcli.data.readers.jsonl import json_kind
from peftcli.data.rows import Row
from peftcli.errors import DataError, RecipeError

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A layout of rows.

    `recognise` looks at one row and says why it has this format, or None. `parse` reads a row and raises `RowFault`.
    `rank`: where several recognise a row the lowest wins. `trained_by_causal_lm`: whether its rows become tokens with a
    mask; the others can be read, checked and shown.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    recognise: Callable[[Columns], str | None]
    parse: Callable[[Columns], Row]
    rank: int
    example: str
    trained_by_causal_lm: bool = True

    @property
    def parts(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)


@dataclass(frozen=True)
class Detected:
    """A format and the reason for it; `columns` maps its parts to the source's columns."""

    format: Format
    why: str
    columns: Mapping[str, str]

    def parse(self, row: Columns) -> Row:
        return self.format.parse(renamed(row, self.columns) if self.columns else row)


@cache
def load_format(name: str) -> Format:
    """The format of that name, ours or an installed package's."""
    try:
        module = importlib.import_module(f"peftcli.data.formats.{name.replace('-', '_')}")
    except ModuleNotFoundError:
        (point,) = metadata.entry_points(group=ENTRY_POINT_GROUP, name=name)
        loaded: Format = point.load()
        return loaded
    found: Format = module.FORMAT
    return found


def renamed(row: Columns, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with the mapped columns under the names of the parts that they play."""
    mapped = {part: row[column] for part, column in columns.items() if column in row}
    taken = set(columns.values())
    return {**{name: value for name, value in row.items() if name not in taken}, **mapped}


def find_format(name: str, columns: Mapping[str, str], row: Columns, where: str) -> Detected:
    """The named format, or for `auto` the one that the row's columns show; checked against the row's columns.

    Raises `RecipeError` for a part that no format has, `DataError` (columns present, nearest, the line that mends it).
    """
    check_columns(name, columns)
    missing = sorted(set(columns.values()) - set(row))
    if missing:
        raise DataError(
            f"`columns` names {missing[0]!r}, which this source does not have{nearest(missing[0], row)}",
            where=where,
            fix=f"columns present: {', '.join(map(str, row))}",
        )
    shown = renamed(row, columns)
    if name != "auto":
        chosen = load_format(name)
        _check_parts(chosen, shown, row, where)
        return Detected(chosen, "named in the recipe", columns)
    candidates = [load_format(known) for known in format_names()]
    fitting = [candidate for candidate in candidates if set(columns) <= set(candidate.parts)]
    for candidate in sorted(fitting, key=lambda each: each.rank):
        if why := candidate.recognise(shown):
            return Detected(candidate, why, columns)
    raise _unrecognised(row, where)


def check_columns(name: str, columns: Mapping[str, str]) -> None:
    """Raises `RecipeError` when `columns` names a part that the format (for auto: any format) does not have."""
    formats = [load_format(known) for known in (format_names() if name == "auto" else (name,))]
    parts = sorted({part for known in formats for part in known.parts})
    for part in columns:
        if part not in parts:
            of = "any format" if name == "auto" else f"format {name}"
            raise RecipeError(
                f"data.columns: {part!r} is not a part of {of}{nearest(part, parts)}", fix=f"parts: {', '.join(parts)}"
            )
    if name == "auto" and columns and not any(set(columns) <= set(known.parts) for known in formats):
        raise RecipeError(
            f"data.columns: no format has all of {', '.join(columns)}", fix="name the format: `format: ...`"
        )


def _check_parts(chosen: Format, shown: Columns, row: Columns, where: str) -> None:
    missing = [part for part in chosen.required if part not in shown]
    if missing:
        part = missing[0]
        raise DataError(
            f"format {chosen.name} needs the column {part!r}, which is missing{nearest(part, map(str, row))}; "
            f"columns present: {', '.join(map(str, row)) or 'none'}",
            where=where,
            fix=f"columns: {{{part}: YOUR_COLUMN}}",
        )


def _unrecognised(row: Columns, where: str) -> DataError:
    if {"role", "text", "parent_id"} <= set(row):
        return DataError(
            "each row is one message of a tree (message_id, parent_id, role, text), not a conversation",
            where=where,
            fix='write each path from a root to a leaf as one row: {"messages": [{"role": ..., "content": ...}, ...]}',
        )
    return DataError(
        f"no format has these columns: {', '.join(map(str, row)) or 'none'}",
        where=where,
        fix="name them, e.g. `columns: {prompt: question, completion: answer}` or `columns: {text: body}`",
    )


def text_part(row: Columns, part: str) -> str:
    """A part that must be text; null, numbers and lists are `RowFault`."""
    value = row.get(part)
    if isinstance(value, str):
        return value
    if part not in row:
        raise RowFault(f"the column {part!r} is missing; columns present: {', '.join(map(str, row))}")
    fix = "cast the column to text, e.g. with pyarrow's `cast('string')`" if isinstance(value, bytes) else None
    raise RowFault(f"{part!r} is {json_kind(value)}, not text", fix or "mend or remove the row")


def filled_text(row: Columns, part: str) -> str:
    """A part that must be text with something in it."""
    value = text_part(row, part)
    if not value.strip():
        raise RowFault(f"{part!r} is empty", "mend or remove the row")
    return value


def optional_text(row: Columns, part: str) -> str:
    """A part that may be missing, null or empty (then `""`), else text."""
    return "" if row.get(part) is None else text_part(row, part)
