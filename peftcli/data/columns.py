"""The columns of a row under the names of the parts that they play, and how messages call them: by the user's names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from peftcli.data.faults import RowFault, listed
from peftcli.data.readers.jsonl import json_kind

Columns = Mapping[str, Any]
"""A row as it was read: column -> value."""
ABSENT = object()
"""Stands for a missing value, since None is what a null in the file becomes."""
# three levels: `answers.text.0`, as public data nests
_DEPTH = 3
_PLAIN = re.compile(r"[^\W\d](?:[\w .()/-]*[\w.()/-])?")
# 16 Mi characters, about 32 books: as one row it would need gigabytes
MAX_TEXT_CHARACTERS = 16 << 20
"""Of one text: its tokens take a hundred times the memory of a character."""


class RenamedRow(dict[str, Any]):
    """A row under the names of parts. `columns`: part -> the column, or path into one, that plays it."""

    def __init__(self, values: Columns, columns: Mapping[str, str]) -> None:
        super().__init__(values)
        self.columns = columns


def written(name: str) -> str:
    """A column's name as YAML has it inside braces: in quotes where a plain name would be read as something else."""
    plain = _PLAIN.fullmatch(name) is not None and name not in ("true", "false", "null", "True", "False", "Null")
    return name if plain else json.dumps(name, ensure_ascii=False)


def value_at(row: Columns, column: str) -> Any:
    """A column, or what a path leads to (`answers.text.0`: keys of objects, numbers in lists); `ABSENT` if nothing."""
    if column in row:
        return row[column]
    # a column whose own name holds a dot wins over a path
    at: Any = row
    for step in column.split("."):
        if isinstance(at, Mapping) and step in at:
            at = at[step]
        # `isdigit` takes digits of every script, `int` most of them: `isascii` keeps to 0-9
        elif isinstance(at, list) and step.isascii() and step.isdigit() and int(step) < len(at):
            at = at[int(step)]
        else:
            return ABSENT
    return at


def renamed(row: Columns, columns: Mapping[str, str]) -> RenamedRow:
    """The row with the mapped columns under the names of the parts that they play."""
    found = {part: value_at(row, column) for part, column in columns.items()}
    mapped = {part: value for part, value in found.items() if value is not ABSENT}
    # a part whose path leads nowhere in this row is missing, whatever column has the part's name
    taken = {*columns.values(), *columns}
    return RenamedRow({**{name: value for name, value in row.items() if name not in taken}, **mapped}, columns)


def column_of(row: Columns, part: str) -> str:
    """The column that plays a part, as the file or the recipe calls it."""
    return row.columns.get(part, part) if isinstance(row, RenamedRow) else part


def called(row: Columns, part: str) -> str:
    """A part in messages: by the user's own column, and the part where the two names differ."""
    column = column_of(row, part)
    return repr(part) if column == part else f"{column!r} ({part})"


def text_paths(value: Any, path: str = "", depth: int = _DEPTH) -> Iterator[str]:
    """Every path to a text with something in it, of lists the first entry only."""
    if isinstance(value, str):
        if value.strip() and path:
            yield path
    elif depth and isinstance(value, Mapping):
        for name, inner in value.items():
            yield from text_paths(inner, f"{path}.{name}" if path else str(name), depth - 1)
    # of a list the first stands for all: a suggestion names one path
    elif depth and isinstance(value, list) and value:
        yield from text_paths(value[0], f"{path}.0", depth - 1)


def text_part(row: Columns, part: str) -> str:
    """A part that must be text; null, numbers, lists and objects are `RowFault`."""
    value = row.get(part)
    if isinstance(value, str):
        if len(value) > MAX_TEXT_CHARACTERS:
            raise RowFault(
                f"{part!r} has {len(value):,} characters; more than {MAX_TEXT_CHARACTERS:,} are not taken as one text",
                "split it into documents or chapters",
            )
        return value
    raise missing_part(row, part) if part not in row else wrong_part(row, part)


def missing_part(row: Columns, part: str) -> RowFault:
    """The fault of a row without a part that its format needs."""
    if isinstance(row, RenamedRow) and part in row.columns:
        return RowFault(f"{called(row, part)} leads nowhere in this row")
    return RowFault(f"the column {part!r} is missing; columns present: {listed(row)}")


def wrong_part(row: Columns, part: str) -> RowFault:
    """What to do about a part that is not text."""
    value = row[part]
    fix = "correct or remove the row"
    if isinstance(value, bytes):
        fix = "cast the column to text, e.g. with pyarrow's `cast('string')`"
    elif isinstance(value, (dict, list)) and (path := next(text_paths(value, column_of(row, part)), None)):
        of = f" (the first of {len(value)})" if isinstance(value, list) and len(value) > 1 else ""
        fix = f"name the text in it{of}: `columns: {{{part}: {written(path)}}}`"
    elif isinstance(value, (int, float)):
        fix = f'write it as text, "{json.dumps(value)}"'
    elif value is not None and not isinstance(value, (dict, list)):
        fix = "cast the column to text where the file is written"
    return RowFault(f"{called(row, part)} is {json_kind(value)}, not text", fix)


def filled_text(row: Columns, part: str) -> str:
    """A part that must be text with something in it."""
    value = text_part(row, part)
    if not value.strip():
        raise RowFault(f"{called(row, part)} is empty", "correct or remove the row")
    return value


def optional_text(row: Columns, part: str) -> str:
    """A part that may be missing, null or empty (then `""`), else text."""
    return "" if row.get(part) is None else text_part(row, part)
