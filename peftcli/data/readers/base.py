"""What every reader yields, and the bounds that all keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftcli.data.faults import FaultLog
from peftcli.data.readers.verified import HashedFile

CHUNK_ROWS = 1024
"""Rows that are read before they are handed on: enough that the cost of handing on does not count."""
CHUNK_BYTES = 1 << 20
"""Bytes after which rows are handed on before there are `CHUNK_ROWS`, so that long rows do not pile up."""
MAX_LINE_BYTES = 100 << 20
"""A longer line is refused: the file is hardly one row a line, and reading on would fill the memory."""

VALUE_BYTES = 8
"""Counted for what stands in a row of a columnar file, whatever it is: not even nulls are free."""


@dataclass
class Chunk:
    """Some rows of one file, in order. `lines[i]` is the line (or row number) of `rows[i]`, from 1. `doubled`: line and
    name of keys that an object of the row has twice."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    doubled: list[tuple[int, str]] = field(default_factory=list)

    def add(self, row: dict[str, Any], line: int) -> None:
        """Appends a row."""
        self.rows.append(row)
        self.lines.append(line)


@dataclass(frozen=True)
class Reading:
    """What a reader gets: the file, how to name it in messages, and where faults go.

    `after`: lines up to this one have been read before; line readers pass over them without looking.
    """

    path: Path
    name: str
    faults: FaultLog
    after: int = 0
    hashed: HashedFile | None = None
    """What the file was when its hash was taken; None where nobody took it."""


Reader = Callable[[Reading], Iterator[Chunk]]
"""Reads a file chunk by chunk."""
