"""What a format is, which one a source has and why, and how its columns are named."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata

from peftcli.data.columns import ABSENT, Columns, renamed, text_paths, value_at, written
from peftcli.data.faults import listed
from peftcli.data.names import ENTRY_POINT_GROUP, format_names, nearest
from peftcli.data.rows import Row
from peftcli.data.suggest import ANY_TEXT_RANK, other_reading, own_columns, recognised, suggestion, unread
from peftcli.errors import DataError, RecipeError


@dataclass(frozen=True)
class Format:
    """A layout of rows.

    `recognise` looks at one row and says why it has this format, or None. `parse` reads a row and raises `RowFault`.
    `rank`: where several recognise a row the lowest wins. `one_sequence`: whether a row becomes one run of tokens with a
    mask, as language models are trained on; the others can be read, checked and shown. `templated`: whether a chat
    template, where the tokenizer has one, writes its rows. `foreign_names`: what other tools call it. `usual`: names
    under which public data has a part, for the line that a message suggests; nothing is read by them unasked.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    recognise: Callable[[Columns], str | None]
    parse: Callable[[Columns], Row]
    rank: int
    example: str
    one_sequence: bool = True
    templated: bool = True
    foreign_names: tuple[str, ...] = ()
    usual: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """Every part that a row of this format may have, those it must have first."""
        return (*self.required, *self.optional)


@dataclass(frozen=True)
class DetectedFormat:
    """A format and the reason for it; `columns` maps its parts to the source's columns."""

    format: Format
    why: str
    columns: Mapping[str, str]

    def parse(self, row: Columns) -> Row:
        """A row as it was read in the shape of the format. Raises `RowFault`."""
        return self.format.parse(renamed(row, self.columns) if self.columns else row)


class UnnamedColumns(DataError):
    """No format has the columns as they are called; `format` has them when `columns` names them."""

    def __init__(self, message: str, where: str, fix: str, *, format: str, columns: Mapping[str, str]) -> None:
        super().__init__(message, where=where, fix=fix)
        self.format = format
        self.columns = dict(columns)


@cache
def load_format(name: str) -> Format:
    """The format of that name, ours or an installed package's."""
    try:
        module = importlib.import_module(f"peftcli.data.formats.{name.replace('-', '_')}")
    # not ours: a package has registered it, or the name would not have come this far
    except ModuleNotFoundError:
        (point,) = metadata.entry_points(group=ENTRY_POINT_GROUP, name=name)
        loaded: Format = point.load()
        return loaded
    found: Format = module.FORMAT
    return found


def find_format(name: str, columns: Mapping[str, str], row: Columns, where: str) -> DetectedFormat:
    """The named format, or for `auto` the one that the row's columns show; checked against the row's columns.

    Raises `RecipeError` for a part that no format has, `DataError` (columns present, nearest, the line that mends it).
    """
    check_columns(name, columns)
    missing = sorted(column for column in columns.values() if value_at(row, column) is ABSENT)
    if missing:
        raise _no_column(missing[0], row, where)
    shown = renamed(row, columns)
    if name != "auto":
        chosen = load_format(name)
        _check_parts(chosen, shown, row, where)
        return DetectedFormat(chosen, "named in the recipe", columns)
    known = [load_format(each) for each in format_names()]
    # the format's own decision comes last: columns may be named for parts that only one format has
    if found := recognised(shown, columns, known):
        # a format that takes any text wins only where nothing else could be meant
        if found[0].rank >= ANY_TEXT_RANK and not columns:
            _check_whole(row, found[0], known, where)
        return DetectedFormat(*found, columns)
    raise _unrecognised(row, known, where)


def _check_whole(row: Columns, chosen: Format, known: Sequence[Format], where: str) -> None:
    """Raises `DataError` where a format that takes any text would leave the answer or the label beside it out."""
    if other := other_reading(row, chosen, known):
        raise DataError(
            f"two formats have these columns: {chosen.name}, which takes {chosen.required[0]!r} alone, and {other[0].name}",
            where=where,
            fix=f"write `{other[1]}` for {other[0].name}, or `format: {chosen.name}` to leave the rest out",
        )


def _no_column(column: str, row: Columns, where: str) -> DataError:
    if column.split(".")[0] in row:
        fix = f"paths to texts: {', '.join(list(text_paths(row))[:12])}"
        return DataError(f"`columns` names {column!r}, which leads nowhere in this row", where=where, fix=fix)
    return DataError(
        f"`columns` names {column!r}, which this source does not have{nearest(column, row)}",
        where=where,
        fix=f"columns present: {listed(row)}",
    )


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
        found = suggestion(row, [chosen], [chosen])
        raise DataError(
            f"format {chosen.name} needs the column {part!r}, which is missing{nearest(part, map(str, row))}; "
            f"columns present: {listed(row) or 'none'}",
            where=where,
            fix=f"write {found[1]}"
            if found
            else f"`columns: {{{part}: {written(next(text_paths(row), 'YOUR_COLUMN'))}}}`",
        )


def _after(fix: str, line: str) -> str:
    return fix if "columns:" in fix else f"{fix}; then write `{line}` into `data`"


def _unrecognised(row: Columns, known: Sequence[Format], where: str) -> DataError:
    if {"role", "text", "parent_id"} <= set(row):
        return DataError(
            "each row is one message of a tree (message_id, parent_id, role, text), not a conversation",
            where=where,
            fix='write each path from a root to a leaf as one row: {"messages": [{"role": ..., "content": ...}, ...]}',
        )
    found = suggestion(row, known, known)
    if found is None and (near := unread(row, known)):
        return DataError(
            f"rows of {near[0].name} by their columns, but {near[2].message}",
            where=where,
            fix=_after(near[2].fix or "correct or remove the row", near[1]),
        )
    message = f"no format has these columns: {listed(row) or 'none'}"
    if found is None:
        return DataError(message, where=where, fix=own_columns(row, known))
    fix = f"write {found[1]} into `data`: rows of {found[0].name}"
    return UnnamedColumns(message, where, fix, format=found[0].name, columns=found[2])
