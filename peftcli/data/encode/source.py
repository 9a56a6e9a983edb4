"""Reads a source to its end and encodes it, chunk by chunk: reading and checking overlap with encoding."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import numpy as np

from peftcli.data.config import SourceConfig
from peftcli.data.doctor.base import row_text
from peftcli.data.doctor.run import Scanner
from peftcli.data.encode.base import EncodedRows
from peftcli.data.encode.encoder import RowEncoder
from peftcli.data.encode.pool import LARGE_BYTES, encoding
from peftcli.data.faults import FaultLog, RowFault, excerpt, place
from peftcli.data.format import DetectedFormat, find_format
from peftcli.data.readers.base import Chunk
from peftcli.data.rows import ChatRow, Label, Row, TextRow
from peftcli.data.sketch import PARTS, sketch
from peftcli.data.source_data import SourceData
from peftcli.data.sources import FileFacts, RowSource
from peftcli.data.store import UNLABELLED, TokenColumns
from peftcli.streams import tell

Progress = Callable[[str, int], None]
"""Called with the source's name and how many rows were encoded since the last call."""
PATIENCE_SECONDS = 60.0
"""A chunk takes a second or two."""


@dataclass(frozen=True)
class ParsedChunk:
    """Rows of one file with their lines, read by their format."""

    file: int
    rows: list[Row]
    lines: list[int]


class SourceReader:
    """Rows of a source, parsed: detects the format, stops at the row cap, counts and checks as it goes."""

    def __init__(
        self,
        source: RowSource,
        config: SourceConfig,
        format: str,
        columns: Mapping[str, str],
        specials: Sequence[str] = (),
    ) -> None:
        self._source = source
        self._cap = config.rows
        self._format = format
        self._columns = columns
        self.detected: DetectedFormat | None = None
        self.rows_read = 0
        self.dropped: dict[str, int] = {}
        self.scanner = Scanner(specials)
        self._scanning = True
        self._seen: set[int] = set()

    def chunks(self, faults: FaultLog) -> Iterator[ParsedChunk]:
        """Every chunk; rows that cannot be used become faults. Raises `DataError` where the format of files differs."""
        for file in range(len(self._source.names)):
            for chunk in self._source.chunks(file, faults):
                if self._cap is not None and self.rows_read + len(chunk.rows) >= self._cap:
                    left = self._cap - self.rows_read
                    doubled = [each for each in chunk.doubled if each[0] in chunk.lines[:left]]
                    yield self.parse(Chunk(chunk.rows[:left], chunk.lines[:left], doubled), file, faults)
                    return
                yield self.parse(chunk, file, faults)

    def read_through(self, faults: FaultLog) -> None:
        """Reads and parses every row for its faults alone."""
        self._scanning = False
        for _ in self.chunks(faults):
            pass

    def place(self, file: int, line: int) -> str:
        """File and line, or row, of a row, as messages name it."""
        return place(self._source.names[file], line, by_row=self._source.by_row(file))

    def place_in(self, chunk: ParsedChunk, position: int) -> str:
        """The same of a row by its position in a chunk."""
        return self.place(chunk.file, chunk.lines[position])

    def log(self, chunk: ParsedChunk, encoded: EncodedRows, faults: FaultLog, bos_id: int | None) -> None:
        """Notes what encoding a chunk found: rows that it refused are faults, the rest is for the checks."""
        name = self._source.names[chunk.file]
        for row, (reason, fix) in encoded.refused.items():
            faults.add(reason, self.place_in(chunk, row), fix)
        for hit in encoded.hits:
            self.scanner.add(hit.check, name, chunk.lines[hit.row], hit.message)
        for row in _doubled_bos(encoded, bos_id):
            self.scanner.add("doubled-bos", name, chunk.lines[row], "the row begins with two BOS tokens")

    def _detect(self, chunk: Chunk, file: int) -> None:
        where = self.place(file, chunk.lines[0])
        found = find_format(self._format, self._columns, chunk.rows[0], where)
        if self.detected is None:
            self.detected = found
        elif found.format is not self.detected.format:
            # a file of another layout: say which, rather than fault each of its rows
            find_format(self.detected.format.name, self._columns, chunk.rows[0], where)

    def parse(self, chunk: Chunk, file: int, faults: FaultLog) -> ParsedChunk:
        """The usable rows of a chunk, checked; the others become faults."""
        if file not in self._seen:
            self._seen.add(file)
            self._detect(chunk, file)
        assert self.detected is not None
        parse = self.detected.parse
        rows: list[Row] = []
        lines: list[int] = []
        for row, line in zip(chunk.rows, chunk.lines, strict=True):
            try:
                rows.append(parse(row))
                lines.append(line)
            except RowFault as fault:
                faults.add(fault.message, self.place(file, line), fault.fix)
        self.rows_read += len(chunk.rows)
        if not self._scanning:
            return ParsedChunk(file, [], [])
        for line, key in chunk.doubled:
            what = f"the key {excerpt(key)!r} stands twice in an object; the last one counts"
            self.scanner.add("duplicate-keys", self._source.names[file], line, what)
        return self._checked(rows, lines, file, faults)

    def _checked(self, rows: list[Row], lines: list[int], file: int, faults: FaultLog) -> ParsedChunk:
        try:
            self.scanner.scan(rows, self._source.names[file], lines)
        except UnicodeEncodeError:
            for row, line in zip(rows, lines, strict=True):
                if not _is_unicode(row):
                    faults.add("the text holds half of a surrogate pair", self.place(file, line), "correct the row")
            rows, lines = [], []
        kept = [number for number, row in enumerate(rows) if not (type(row) is TextRow and not row.text.strip())]
        if len(kept) < len(rows):
            self.dropped["empty"] = self.dropped.get("empty", 0) + len(rows) - len(kept)
            rows, lines = [rows[number] for number in kept], [lines[number] for number in kept]
        return ParsedChunk(file, rows, lines)


def _is_unicode(row: Row) -> bool:
    try:
        row_text(row).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclass
class _ChunkCollector:
    """Encoded chunks, put together at the end."""

    tokens: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    lengths: list[np.ndarray] = field(default_factory=list)
    files: list[np.ndarray] = field(default_factory=list)
    lines: list[np.ndarray] = field(default_factory=list)
    keys: list[np.ndarray] = field(default_factory=list)
    sketches: list[np.ndarray] = field(default_factory=list)
    parts: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    label_sets: dict[str, tuple[Label, ...]] = field(default_factory=dict)

    def add(self, chunk: ParsedChunk, encoded: EncodedRows) -> None:
        lengths = np.array(encoded.lengths, dtype=np.int64)
        tokens = encoded.tokens()
        self.tokens.append(tokens)
        self.weights.append(encoded.weights())
        self.lengths.append(lengths)
        self.files.append(np.full(len(lengths), chunk.file, dtype=np.int32))
        self.lines.append(np.array([chunk.lines[row] for row in encoded.kept], dtype=np.int64))
        self.keys.append(row_keys(tokens, lengths))
        self.sketches.append(sketch(tokens, lengths))
        self.parts.append(np.array(encoded.parts, dtype=np.int32))
        self.labels.append(label_numbers(encoded, self.label_sets))


def label_numbers(encoded: EncodedRows, known: dict[str, tuple[Label, ...]]) -> np.ndarray:
    """(rows,) int32: the number of each row's labels among those that are known, to which new ones are added."""
    if not encoded.labels:
        return np.full(len(encoded.lengths), UNLABELLED, dtype=np.int32)
    numbers = {key: number for number, key in enumerate(known)}
    found = []
    for labels in encoded.labels:
        # as text, since 1 and 1.0 are one key of a dictionary and two labels here
        key = repr(labels)
        if key not in numbers:
            numbers[key] = len(known)
            known[key] = labels
        found.append(numbers[key])
    return np.array(found, dtype=np.int32)


def row_keys(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(rows,) uint64: a hash of each row's ids."""
    data, ends = tokens.tobytes(), np.cumsum(lengths) * tokens.itemsize
    digests = bytearray()
    start = 0
    for end in ends.tolist():
        digests += hashlib.blake2b(data[start:end], digest_size=8).digest()
        start = end
    return np.frombuffer(bytes(digests), dtype=np.uint64)


def encode_source(
    source: RowSource,
    reader: SourceReader,
    encoder: RowEncoder,
    inputs: list[FileFacts],
    faults: FaultLog,
    identity: str,
    progress: Progress | None = None,
) -> SourceData:
    """Every usable row of the source as tokens and weights; what is wrong with the others goes to `faults`."""
    began = time.perf_counter()
    gathered = _ChunkCollector()
    joins = True
    large = sum(each.bytes for each in inputs) > LARGE_BYTES
    for chunk, encoded in _encoded(reader, encoder, faults, large=large):
        reader.log(chunk, encoded, faults, encoder.codec.bos_id)
        gathered.add(chunk, encoded)
        joins = joins and all(type(row) is TextRow for row in chunk.rows)
        if progress is not None:
            progress(source.name, len(chunk.rows))
    reader.scanner.finish()
    return SourceData(
        TokenColumns(
            _whole(gathered.tokens, np.int32),
            _whole(gathered.weights, np.float32),
            _whole(gathered.parts, np.int32),
            encoder.encoding.from_before,
        ),
        _whole(gathered.lengths, np.int64),
        _whole(gathered.files, np.int32),
        _whole(gathered.lines, np.int64),
        _whole(gathered.keys, np.uint64),
        np.concatenate(gathered.sketches) if gathered.sketches else np.empty((0, PARTS), dtype=np.uint32),
        tuple(source.names),
        tuple(inputs),
        reader.detected.format.name if reader.detected else "",
        reader.detected.why if reader.detected else "",
        joins,
        reader.rows_read,
        dict(reader.dropped),
        reader.scanner.tallies,
        time.perf_counter() - began,
        identity,
        _whole(gathered.labels, np.int32),
        tuple(gathered.label_sets.values()),
    )


def _encoded(
    reader: SourceReader, encoder: RowEncoder, faults: FaultLog, *, large: bool
) -> Iterator[tuple[ParsedChunk, EncodedRows]]:
    """Chunks with their tokens, in order; the next chunks are read and checked while these are encoded."""
    chunks = (chunk for chunk in reader.chunks(faults) if chunk.rows)
    first = next(chunks, None)
    if first is None:
        return
    conversations = type(first.rows[0]) is ChatRow and encoder.encoding.chats
    with encoding(encoder, large=large, conversations=conversations) as (submit, width):
        waiting: deque[tuple[ParsedChunk, Future[EncodedRows]]] = deque()
        for chunk in chain([first], chunks):
            waiting.append((chunk, submit(chunk.rows, partial(reader.place_in, chunk))))
            if len(waiting) > width:
                done, encoded = waiting.popleft()
                yield done, _awaited(encoded, reader, done)
        while waiting:
            done, encoded = waiting.popleft()
            yield done, _awaited(encoded, reader, done)


def _awaited(encoded: Future[EncodedRows], reader: SourceReader, chunk: ParsedChunk) -> EncodedRows:
    """The tokens of a chunk. What takes far longer than rows do is told with the rows: nothing else shows where it is.
    The tokenizer and the chat template each stop on a row that takes too long; many slow ones add up."""
    done, _ = wait([encoded], timeout=PATIENCE_SECONDS)
    if not done:
        first, last = reader.place_in(chunk, 0), reader.place_in(chunk, len(chunk.rows) - 1)
        tell(f"note: rows from {first} to {last} have taken {PATIENCE_SECONDS:.0f} seconds to encode, and are not done")
    return encoded.result()


def _doubled_bos(encoded: EncodedRows, bos_id: int | None) -> list[int]:
    """Positions in the chunk of rows that begin with BOS twice."""
    lengths, tokens = np.array(encoded.lengths, dtype=np.int64), encoded.tokens()
    if bos_id is None or not len(tokens):
        return []
    long = np.flatnonzero(lengths > 1)
    starts = (np.cumsum(lengths) - lengths)[long]
    doubled = (tokens[starts] == bos_id) & (tokens[starts + 1] == bos_id)
    return [encoded.kept[row] for row in long[doubled].tolist()]


def _whole(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)
