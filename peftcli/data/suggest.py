"""For columns that no format has: the lines of a recipe under which the row can be read, tried on the row itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftcli.data.columns import ABSENT, Columns, renamed, text_paths, value_at, written
from peftcli.data.faults import RowFault, listed

if TYPE_CHECKING:
    from peftcli.data.format import Format

ANY_TEXT_RANK = 90
"""Formats of this rank and above take any text: suggested when no other can be read."""


def suggestion(
    row: Columns, wanted: Iterable[Format], known: Sequence[Format]
) -> tuple[Format, str, dict[str, str]] | None:
    """A format that reads the row, the line for it and the columns that the line names, or None.

    `known`: all that `format: auto` chooses from.
    The format of which most parts are there is taken, then one that can be trained on, then the simplest.
    """
    found = [
        (each, columns)
        for each in wanted
        if (columns := _mapping(each, row)) is not None and _reads(each, columns, row)
    ]
    # as named first; then with paths into columns that hold lists or objects
    if not found:
        inside = [(each, _to_texts(columns, row)) for each in wanted if (columns := _mapping(each, row)) is not None]
        found = [(each, columns) for each, columns in inside if _reads(each, columns, row)]
    if not found:
        return None
    chosen, columns = min(found, key=lambda pair: _order(pair[0], pair[1], row))
    auto = recognised(renamed(row, columns), columns, known)
    line = line_of(columns)
    # the line alone is enough where `auto` would choose the same format by it
    named = auto is not None and auto[0] is chosen
    return chosen, f"`{line}`" if named else f"`format: {chosen.name}` and `{line}`", columns


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
        # the same column cannot play two parts
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
    # `min` takes the first: minus, so that more parts found come before fewer
    return -found, not of.one_sequence, of.rank >= ANY_TEXT_RANK, len(of.parts)


def unread(row: Columns, known: Iterable[Format]) -> tuple[Format, str, RowFault] | None:
    """Where a format's parts are all there by their usual names, but the row cannot be read: the line, and why not."""
    near = [(each, columns) for each in known if len(each.required) > 1 and (columns := _mapping(each, row))]
    for each, columns in sorted(near, key=lambda pair: _order(pair[0], pair[1], row)):
        try:
            each.parse(renamed(row, columns))
        except RowFault as fault:
            return each, line_of(columns), fault
    return None


def _to_texts(columns: Mapping[str, str], row: Columns) -> dict[str, str]:
    """The same, with paths to the first text of columns that are lists or objects."""
    values = {part: value_at(row, column) for part, column in columns.items()}
    return {
        part: next(text_paths(values[part], column), column) if isinstance(values[part], (dict, list)) else column
        for part, column in columns.items()
    }


def other_reading(row: Columns, chosen: Format, known: Iterable[Format]) -> tuple[Format, str] | None:
    """What else a row is that a format would take for the sake of one text: question and answer, text and label."""
    (text,) = chosen.required
    for each in sorted(known, key=lambda each: (not each.one_sequence, len(each.parts))):
        # one text and one more part; and a format whose text is already there by name needs no line
        if each is chosen or len(each.required) != 2 or (text != (first := each.required[0]) and first in row):
            continue
        second = each.required[1]
        other = next((name for name in (second, *each.usual.get(second, ())) if row.get(name) is not None), None)
        # a name beside a document may be about it; a number or a list of them is a label
        if other is None or isinstance(row[other], str) == (text == first):
            continue
        columns = {part: name for part, name in ((first, text), (second, other)) if part != name}
        if _reads(each, columns, row):
            return each, line_of(columns)
    return None


def line_of(columns: Mapping[str, str]) -> str:
    """`columns: {...}` as a recipe has it."""
    return f"columns: {{{', '.join(f'{part}: {written(column)}' for part, column in columns.items())}}}"


def _lists(row: Columns, path: str = "", depth: int = 2) -> Iterator[tuple[str, list[Any]]]:
    """Paths to lists of objects: turns or entries."""
    # empty lists, and lists of texts, are neither turns nor entries
    for name, value in row.items():
        if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            yield f"{path}{name}", value
        elif depth > 1 and isinstance(value, Mapping):
            yield from _lists(value, f"{path}{name}.", depth - 1)


def _about_lists(lists: Sequence[tuple[str, list[Any]]], row: Columns, known: Iterable[Format]) -> str:
    path, entries = lists[0]
    for each in known:
        if len(lists) == 1 and len(each.required) == 1 and each.rank < ANY_TEXT_RANK:
            columns = {each.required[0]: path}
            if each.recognise(renamed(row, columns)) and _reads(each, columns, row):
                return f"write `{line_of(columns)}` into `data`: rows of {each.name}"
    return (
        f"{path!r} is a list of objects with {listed(entries[0])}: write each row as "
        '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}'
    )


def own_columns(row: Columns, known: Iterable[Format]) -> str:
    """An example in the row's own names, where nothing says which column is what."""
    if lists := list(_lists(row)):
        return _about_lists(lists, row, known)
    texts = list(text_paths(row))
    if not texts:
        return "no column holds text: write the rows in one of the formats of `peft explain data.format`"
    # question and answer are the longest texts of a row, ids and labels are short
    longest = sorted(texts, key=lambda path: -len(value_at(row, path)))[:2]
    # in the order of the row: the question mostly stands before the answer
    chosen = [path for path in texts if path in longest]
    if len(chosen) == 1:
        return f"name what is trained on: `columns: {{text: {written(chosen[0])}}}`"
    return (
        f"name question and answer, e.g. `columns: {{prompt: {written(chosen[0])}, completion: {written(chosen[1])}}}`"
    )
