"""One source of a stream, read piece by piece from any position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from peftcli.data.config import SourceConfig
from peftcli.data.encode.source import ParsedChunk, SourceReader
from peftcli.data.faults import FaultLog
from peftcli.data.order import permutation
from peftcli.data.readers.base import Chunk
from peftcli.data.sources import RowSource
from peftcli.errors import DataError

_FILES_STREAM = 1_000_037


@dataclass(frozen=True)
class Position:
    """Where a source is read next: `passes` through it before this one, place of the file in this pass, last line read,
    rows read in this pass."""

    passes: int = 0
    file: int = 0
    line: int = 0
    rows: int = 0


class StreamSource:
    """Rows from a position on; going on where the last piece ended costs nothing. At its end the source starts over,
    with its files in another order."""

    def __init__(self, source: RowSource, section: SourceConfig, reader: SourceReader, seed: int) -> None:
        self.source = source
        self.reader = reader
        self._cap = section.rows
        self._seed = seed
        self._live: tuple[Position, Iterator[Chunk], Chunk | None] | None = None

    def take(self, start: Position, count: int, faults: FaultLog) -> tuple[list[ParsedChunk], Position]:
        """The next `count` rows of the source, and the position after them."""
        parts: list[ParsedChunk] = []
        at = start
        while count > 0:
            # `rows` of a source bounds each pass, not the whole stream
            wanted = count if self._cap is None else min(count, self._cap - at.rows)
            chunk = self._next(at, wanted, faults) if wanted > 0 else None
            if chunk is None:
                at = self._further(at, capped=wanted <= 0)
                continue
            parts.append(self.reader.parse(chunk, self._file(at), faults))
            count -= len(chunk.rows)
            at = self._moved(at, chunk)
        return parts, at

    def _next(self, at: Position, wanted: int, faults: FaultLog) -> Chunk | None:
        """At most `wanted` rows of the file at a position; None at its end."""
        # not where the last piece ended: after an interruption, or for rows that a block carries over
        if self._live is None or self._live[0] != at:
            self._live = at, self.source.chunks(self._file(at), faults, at.line), None
        _, chunks, rest = self._live
        chunk = rest or next(chunks, None)
        if chunk is None:
            return None
        left = Chunk(chunk.rows[wanted:], chunk.lines[wanted:])
        self._live = at, chunks, left if left.rows else None
        return Chunk(chunk.rows[:wanted], chunk.lines[:wanted])

    def _moved(self, at: Position, chunk: Chunk) -> Position:
        behind = replace(at, line=chunk.lines[-1], rows=at.rows + len(chunk.rows))
        if self._live is not None:
            self._live = behind, *self._live[1:]
        return behind

    def _further(self, at: Position, *, capped: bool) -> Position:
        """The next file, or the next pass."""
        if not capped and at.file + 1 < len(self.source.names):
            return Position(at.passes, at.file + 1, 0, at.rows)
        # a pass that gave nothing would repeat for ever
        if at.rows == 0:
            raise DataError("the source holds no rows", where=self.source.name)
        return Position(at.passes + 1)

    def _file(self, at: Position) -> int:
        count = len(self.source.names)
        # drawn by pass and not in sequence: any pass can be found without those before it
        return at.file if count == 1 else int(permutation(count, self._seed, _FILES_STREAM, at.passes)[at.file])
