"""For columns that no format has: the lines of a recipe under which the row can be read, tried on the row itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from peftcli.data.columns import ABSENT, Columns, renamed, text_paths, value_at
from peftcli.data.faults import RowFault

if TYPE_CHECKING:
    from peftcli.data.format import Format

_ANY_TEXT_RANK = 90
"""Formats of this rank and above take any text: suggested when no other can be read."""


def suggestion(row: Columns, wanted: Iterable[Format], known: Sequence[Format]) -> tuple[Format, str] | None:
    """A format that reads the row and the line for it, or None. `known`: all that `format: auto` chooses from.

    The format of which most parts are there is taken, then one that can be trained on, then the simplest.
    """
    found = [
        (each, columns)
        for each in wanted
        if (columns := _mapping(each, row)) is not None and _reads(each, columns, row)
    ]
    if not found:
        return None
    chosen, columns = min(found, key=lambda pair: _order(pair[0], pair[1], row))
    auto = recognised(renamed(row, columns), columns, known)
    line = f"columns: {{{', '.join(f'{part}: {column}' for part, column in columns.items())}}}"
    named = auto is not None and auto[0] is chosen
    return chosen, f"`{line}`" if named else f"`format: {chosen.name}` and `{line}`"


def recognised(shown: Columns, columns: Mapping[str, str], known: Sequence[Format]) -> tuple[Format, str] | None:
    """The format that `auto` takes and why, or None."""
    for each in sorted(known, key=lambda each: each.rank):
        if set(columns) <= set(each.parts) and (why := each.recognise(shown)):
            return each, why
    return None


def _mapping(of: Format, row: Columns) -> dict[str, str] | None:
    """Which columns play the parts that have another name in the row; None when a required part has none."""
    taken = {part for part in of.parts if part in row}
    columns: dict[str, str] = {}
    for part in of.parts:
        if part in row:
            continue
        names = (name for name in of.usual.get(part, ()) if name.split(".")[0] not in taken)
        column = next((name for name in names if value_at(row, name) not in (ABSENT, None)), None)
        if column is not None:
            columns[part] = column
            taken.add(column.split(".")[0])
        elif part in of.required:
            return None
    return columns or None


def _reads(of: Format, columns: Mapping[str, str], row: Columns) -> bool:
    try:
        of.parse(renamed(row, columns))
    except RowFault:
        return False
    return True


def _order(of: Format, columns: Mapping[str, str], row: Columns) -> tuple[int, bool, bool, int]:
    found = len(columns) + sum(part in row for part in of.parts)
    return -found, not of.one_sequence, of.rank >= _ANY_TEXT_RANK, len(of.parts)


def own_columns(row: Columns) -> str:
    """An example in the row's own names, where nothing says which column is what."""
    texts = list(text_paths(row))
    if not texts:
        return "no column holds text: write the rows in one of the formats of `peft explain data.format`"
    longest = sorted(texts, key=lambda path: -len(value_at(row, path)))[:2]
    chosen = [path for path in texts if path in longest]
    if len(chosen) == 1:
        return f"name what is trained on: `columns: {{text: {chosen[0]}}}`"
    return f"name question and answer, e.g. `columns: {{prompt: {chosen[0]}, completion: {chosen[1]}}}`"
