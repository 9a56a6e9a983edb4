"""CSV and TSV with a header line, separated by commas, tabs, or what the header shows (`;`, `|`). Every cell is text."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain

from peftcli.data.faults import listed
from peftcli.data.readers.base import CHUNK_ROWS, MAX_LINE_BYTES, Chunk, Reading
from peftcli.data.readers.compressed import plain_suffix
from peftcli.data.readers.lines import read_lines
from peftcli.errors import DataError

_SEPARATORS = (";", "\t", "|", ",")
# what Excel writes before the header for itself
_SAID = re.compile(r"sep=([;\t|,])")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def read(reading: Reading) -> Iterator[Chunk]:
    """Chunks of rows; a row with more or fewer cells than the header becomes a fault with its line."""
    # Python's own limit of 128 KiB is less than a long document
    csv.field_size_limit(MAX_LINE_BYTES)
    # a cell may hold line breaks: the parser is given the lines with their ends and counts them itself
    lines = _NumberedLines(reading)
    usual = "\t" if plain_suffix(reading.path) == ".tsv" else ","
    try:
        first = next(lines, None)
        if first is None:
            return
        said = _SAID.fullmatch(first.rstrip())
        separator = said[1] if said else _separator(first, usual)
        parser = csv.reader(lines if said else chain([first], lines), delimiter=separator, strict=True)
        header = next(parser, None)
        if header is None:
            return
        _check_header(header, reading)
        yield from _chunks(parser, header, lines, reading)
    except csv.Error as error:
        raise DataError(
            f"not valid CSV: {error}", where=f"{reading.name}:{lines.number}", fix="quote cells that hold quotes"
        ) from error


def _separator(header: str, usual: str) -> str:
    """The separator of a file: that of its suffix, or where its header has none of that, the one that it does have."""
    # quoted cells may hold any sign
    bare = _QUOTED.sub("", header)
    others = [sign for sign in _SEPARATORS if sign in bare]
    return others[0] if usual not in bare and others else usual


class _NumberedLines:
    """Hands lines to the parser and remembers the number of the last one."""

    def __init__(self, reading: Reading) -> None:
        self._lines = read_lines(reading)
        self.number = 0

    def __iter__(self) -> _NumberedLines:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        return line + "\n"


def _check_header(header: list[str], reading: Reading) -> None:
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice:
        raise DataError(
            f"the header names a column twice: {listed(twice)}", where=f"{reading.name}:1", fix="rename one of them"
        )


def _chunks(parser: Iterator[list[str]], header: list[str], lines: _NumberedLines, reading: Reading) -> Iterator[Chunk]:
    # the line on which a row starts: the parser has read on to where it ends
    chunk, start = Chunk(), lines.number + 1
    for cells in parser:
        line, start = start, lines.number + 1
        # a blank line; a row of empty cells has its separators
        if not cells:
            continue
        if len(cells) != len(header):
            reading.faults.add(
                f"the row has {len(cells)} cells, the header {len(header)}",
                f"{reading.name}:{line}",
                "quote cells that hold the separator",
            )
            continue
        chunk.add(dict(zip(header, cells, strict=True)), line)
        if len(chunk.rows) == CHUNK_ROWS:
            yield chunk
            chunk = Chunk()
    if chunk.rows:
        yield chunk
