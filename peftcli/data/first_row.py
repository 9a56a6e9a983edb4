"""A look at the first rows of a source, for whoever wants to know its format before anything is prepared.

Imports nothing heavy and takes no time: files whose reading does either, and sources that are no files, are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from peftcli.data.config import SourceConfig
from peftcli.data.faults import FaultLog, RowFault, place
from peftcli.data.format import DetectedFormat, find_format
from peftcli.data.readers.containers import read_file
from peftcli.data.sources import LocalFiles, RowSource
from peftcli.errors import DataError

_QUICK = (".jsonl", ".ndjson", ".csv", ".tsv", ".json")
_MOST_BYTES = 8 << 20
"""Of a file that is read whole before its first row is known."""
_BY_ROW = ".json"


@dataclass(frozen=True)
class FirstRow:
    """What the first row of a source shows."""

    detected: DetectedFormat
    where: str


class _FirstFault(FaultLog):
    """Tells the first fault at once, so that no more is read of a file that is no rows at all."""

    def add(self, message: str, where: str, fix: str | None = None) -> NoReturn:
        raise DataError(message, where=where, fix=fix or "correct or remove the row")


def first_row(source: RowSource, config: SourceConfig, format: str, columns: Mapping[str, str]) -> FirstRow | None:
    """The format of the first file by its first row; None for one that is not looked into.

    Raises `DataError` for what cannot be read of the first rows or has no format, `RecipeError` as `find_format` does.
    """
    if not isinstance(source, LocalFiles):
        return None
    path, name = source.paths[0], source.names[0]
    large = path.suffix == _BY_ROW and path.stat().st_size > _MOST_BYTES
    if path.suffix not in _QUICK or large or config.rows == 0:
        return None
    chunk = next(read_file(path, name, _FirstFault()))
    where = place(name, chunk.lines[0], by_row=source.by_row(0))
    detected = find_format(format, columns, chunk.rows[0], where)
    try:
        detected.parse(chunk.rows[0])
    except RowFault as fault:
        raise DataError(fault.message, where=where, fix=fault.fix) from fault
    return FirstRow(detected, where)
