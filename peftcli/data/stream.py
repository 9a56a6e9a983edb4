"""Rows read while training, for sources larger than memory: an endless stream in shuffled blocks, with a small cursor.

The shuffle buffer is a block: so many rows are read, cut to length and shuffled among themselves, and given out whole
batches at a time; the few that fill no batch are carried into the next block. Where a block begins is all that has to be
known to build it again, so a cursor holds no rows. Each source starts over, with its files in another order, when it is
at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from peftcli.data.assemble import tally_cut
from peftcli.data.config import DataConfig, SourceConfig
from peftcli.data.doctor.base import Finding
from peftcli.data.doctor.run import findings_of, raise_failures
from peftcli.data.encode.base import EncodedRows, EncodeSettings
from peftcli.data.encode.encoder import RowEncoder
from peftcli.data.encode.source import ParsedChunk
from peftcli.data.faults import FaultLog
from peftcli.data.load_source import source_reader
from peftcli.data.mixing import calm_weights
from peftcli.data.order import BatchOrder
from peftcli.data.rows import TextRow
from peftcli.data.sources import resolve
from peftcli.data.store import RowIndex, TokenColumns, TokenStore
from peftcli.data.stream_source import Position, StreamSource
from peftcli.data.tokens import TokenizerFacts
from peftcli.data.truncation import MAX_DROPPED, TOO_LONG, cut_rows
from peftcli.errors import DataError

BLOCK_ROWS = 8192
# 5 % of a few rows is chance; of a thousand it is the data
_MIN_ROWS_TO_JUDGE = 1000


def stream_heads(config: DataConfig) -> tuple[SourceConfig, ...]:
    """The sources of a stream, each cut to its part of one block: enough to plan with."""
    # every source has rows to plan with, however many there are
    share = max(1, BLOCK_ROWS // len(config.train_sources))
    return tuple(
        source.model_copy(update={"rows": min(source.rows or share, share)}) for source in config.train_sources
    )


@dataclass(frozen=True)
class Cursor:
    """Where a block begins. `before`: where the block before it began (the rows that it carried over are read there
    again); `carried`: how many; `batches`: batches before this block."""

    block: int
    at: tuple[Position, ...]
    before: tuple[Position, ...]
    carried: int = 0
    batches: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The cursor as plain JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(body: dict[str, Any]) -> Cursor:
        """Raises `KeyError` or `TypeError` for what is not a cursor."""
        at, before = (tuple(Position(**each) for each in body[name]) for name in ("at", "before"))
        return Cursor(body["block"], at, before, body["carried"], body["batches"])


@dataclass
class Block:
    """Some batches of rows of `store`. `next`: where the block after this one begins."""

    store: TokenStore
    batches: list[np.ndarray]
    next: Cursor


@dataclass
class StreamCounts:
    """What a stream has given so far."""

    rows_read: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    tokens_lost: int = 0


class RowStream:
    """Blocks of training rows. Two streams of the same recipe, tokenizer and seed give the same blocks."""

    def __init__(self, config: DataConfig, tokenizer: TokenizerFacts, folder: Path, seed: int, batch_size: int) -> None:
        self._config = config
        self._seed = seed
        self._batch_size = batch_size
        self._encoder = RowEncoder(tokenizer, EncodeSettings.of(config))
        self.sources: list[StreamSource] = []
        for number, section in enumerate(config.train_sources):
            source = resolve(section, folder)
            reader = source_reader(source, section, config, tokenizer)
            # a seed for each source, or the files of all would come in the same order
            self.sources.append(StreamSource(source, section, reader, seed + number))
        self.inputs = [source.source.facts() for source in self.sources]
        self._shares = self._source_shares()
        # a whole number of batches, so that little is carried over
        self._block_rows = max(BLOCK_ROWS // batch_size, 1) * batch_size
        self.counts = StreamCounts()
        self._carried: tuple[Cursor, TokenStore] | None = None

    def start(self) -> Cursor:
        """The beginning of the stream."""
        at = tuple(Position() for _ in self.sources)
        return Cursor(0, at, at)

    def block(self, cursor: Cursor) -> Block:
        """The block that begins at a cursor. Raises `DataError` for rows that cannot be used and for failed checks."""
        carried_in = self._carried_into(cursor)
        fresh, behind = self._rows(cursor.block, cursor.at)
        raise_failures(self.findings())
        if not len(fresh):
            raise DataError(
                f"none of {self._block_rows:,} rows can be used", fix="see what `peft data` says about the source"
            )
        store = fresh if carried_in is None else _joined([carried_in, fresh])
        carried = len(store) % self._batch_size
        # the next block finds the carried rows by reading this one again, so they must all be from it
        carried = carried if carried <= len(fresh) else 0
        order = BatchOrder(store.lengths[: len(store) - carried], self._batch_size, self._seed)
        batches = [order.batch(cursor.block, number) for number in range(order.steps_per_epoch)]
        following = Cursor(cursor.block + 1, behind, cursor.at, carried, cursor.batches + len(batches))
        self._carried = following, _last(fresh, carried)
        return Block(store, batches, following)

    def findings(self) -> list[Finding]:
        """What the checks on single rows have seen so far; those that compare rows need all of them, and do not run."""
        return findings_of([source.reader.scanner.tallies for source in self.sources], self._config.checks)

    def _carried_into(self, cursor: Cursor) -> TokenStore | None:
        if not cursor.carried:
            return None
        if self._carried is not None and self._carried[0] == cursor:
            return self._carried[1]
        before, _ = self._rows(cursor.block - 1, cursor.before)
        return _last(before, cursor.carried)

    def _source_shares(self) -> np.ndarray:
        """Part of each source in a block: by weight, else by size, so that all end at about the same time."""
        sections = self._config.train_sources
        if sections[0].weight is not None:
            sizes = calm_weights([section.weight or 0.0 for section in sections])
        else:
            held = [sum(each.bytes for each in inputs) for inputs in self.inputs]
            sizes = np.array([size * section.repeat for size, section in zip(held, sections, strict=True)], dtype=float)
        return np.asarray(sizes / sizes.sum())

    def _rows(self, block: int, at: Sequence[Position]) -> tuple[TokenStore, tuple[Position, ...]]:
        """All rows of a block in the order of reading, and where each source stands after them."""
        faults = FaultLog()
        stores, behind = [], []
        for number, (source, position) in enumerate(zip(self.sources, at, strict=True)):
            share = self._block_rows * self._shares[number]
            # whole rows that add up to the share over many blocks
            count = int((block + 1) * share) - int(block * share)
            parts, after = source.take(position, count, faults)
            behind.append(after)
            stores += [self._encoded(number, parts, faults)] if parts else []
        faults.raise_any()
        return _joined(stores), tuple(behind)

    def _encoded(self, number: int, parts: Sequence[ParsedChunk], faults: FaultLog) -> TokenStore:
        source = self.sources[number]
        columns: list[TokenColumns] = []
        indexes: list[RowIndex] = []
        joins = True
        for part in parts:
            if not part.rows:
                continue
            joins = joins and all(type(row) is TextRow for row in part.rows)
            encoded = self._encoder.encode(part.rows, partial(source.reader.place_in, part))
            source.reader.log(part, encoded, faults, self._encoder.codec.bos_id)
            indexes.append(_index(encoded, part, len(columns), number))
            columns.append(TokenColumns(encoded.tokens(), encoded.weights()))
        if not columns:
            return TokenStore([], RowIndex(*(np.empty(0, dtype=np.int64) for _ in range(6))), source.source.names)
        whole = RowIndex.concatenate(indexes)
        begin, config = self._encoder.codec.bos_id, self._config
        cut = cut_rows(columns, whole, config.truncation, config.max_length, joins=joins, begin=begin)
        tally_cut(cut, whole, source.source.names, source.reader.scanner.tallies)
        self._count(len(whole.length), cut.dropped, cut.tokens_lost)
        return TokenStore(cut.columns, cut.index, source.source.names)

    def _count(self, rows: int, dropped: dict[str, int], tokens_lost: int) -> None:
        counts = self.counts
        counts.rows_read += rows
        counts.tokens_lost += tokens_lost
        for reason, count in dropped.items():
            counts.dropped[reason] = counts.dropped.get(reason, 0) + count
        policy, gone = self._config.truncation, counts.dropped.get(TOO_LONG, 0)
        # `auto` counts first: a long row at the beginning of a good source stops nothing
        many = counts.rows_read >= _MIN_ROWS_TO_JUDGE and gone > MAX_DROPPED * counts.rows_read
        if (policy == "error" and gone) or (policy == "auto" and many):
            raise DataError(
                f"{gone:,} of {counts.rows_read:,} rows read so far are longer than max_length ({self._config.max_length})",
                fix="a larger data.max_length, or another data.truncation (drop, left, right, split)",
            )


def _last(store: TokenStore, count: int) -> TokenStore:
    return store.take(np.arange(len(store) - count, len(store)))


def _index(encoded: EncodedRows, part: ParsedChunk, column: int, source: int) -> RowIndex:
    lengths = np.array(encoded.lengths, dtype=np.int64)
    same = np.ones(len(lengths), dtype=np.int64)
    lines = np.array([part.lines[row] for row in encoded.kept], dtype=np.int64)
    return RowIndex(same * column, np.cumsum(lengths) - lengths, lengths, same * source, same * part.file, lines)


def _joined(stores: Sequence[TokenStore]) -> TokenStore:
    """Several stores as one, in their order."""
    columns: list[TokenColumns] = []
    files: list[str] = []
    indexes = []
    for store in stores:
        index = store.index
        indexes.append(replace(index, column=index.column + len(columns), file=index.file + len(files)))
        columns += store.columns
        files += store.files
    return TokenStore(columns, RowIndex.concatenate(indexes), files)
