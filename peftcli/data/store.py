"""Rows as tokens, in columns: flat arrays and where each row starts, so that a view of rows copies nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Origin:
    """Where a row came from. `line` counts from 1; where a file has no lines it is the row number."""

    source: int
    file: str
    line: int


@dataclass(frozen=True)
class EncodedRow:
    """One row: `input_ids` (length,) int32; `weights` (length,) float32, the loss weight of each token AS A TARGET."""

    input_ids: np.ndarray
    weights: np.ndarray
    origin: Origin


@dataclass(frozen=True)
class TokenColumns:
    """Flat tokens and weights that rows point into; may be memory-mapped. Both (tokens,), int32 and float32."""

    tokens: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class RowIndex:
    """One entry a row: which columns, where it starts, how long it is, and where it came from. All (rows,)."""

    column: np.ndarray
    start: np.ndarray
    length: np.ndarray
    source: np.ndarray
    file: np.ndarray
    line: np.ndarray

    def take(self, rows: np.ndarray) -> RowIndex:
        return RowIndex(
            self.column[rows], self.start[rows], self.length[rows], self.source[rows], self.file[rows], self.line[rows]
        )

    @staticmethod
    def concatenate(parts: Sequence[RowIndex]) -> RowIndex:
        names = ("column", "start", "length", "source", "file", "line")
        return RowIndex(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class TokenStore:
    """Rows for training. `lengths` and `trained` (targets that carry loss) are (rows,) int64."""

    def __init__(self, columns: Sequence[TokenColumns], index: RowIndex, files: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.index = index
        self.files = tuple(files)
        self.lengths = index.length.astype(np.int64)
        self.trained = count_trained(self.columns, index)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> EncodedRow:
        """A row as arrays of its own; the first token is never a target. `IndexError` beyond the end."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        start, length = int(self.index.start[row]), int(self.index.length[row])
        columns = self.columns[int(self.index.column[row])]
        weights = np.array(columns.weights[start : start + length], dtype=np.float32)
        weights[:1] = 0
        return EncodedRow(np.array(columns.tokens[start : start + length], dtype=np.int32), weights, self.origin(row))

    def __iter__(self) -> Iterator[EncodedRow]:
        return (self[row] for row in range(len(self)))

    def origin(self, row: int) -> Origin:
        file = self.files[int(self.index.file[row])]
        return Origin(int(self.index.source[row]), file, int(self.index.line[row]))

    def take(self, rows: np.ndarray) -> TokenStore:
        """The same columns, other rows: nothing is copied."""
        return TokenStore(self.columns, self.index.take(rows), self.files)


def count_trained(columns: Sequence[TokenColumns], index: RowIndex) -> np.ndarray:
    """Targets that carry loss, a row: (rows,) int64. The first token of a row is never a target."""
    trained = np.zeros(len(index.length), dtype=np.int64)
    for number, column in enumerate(columns):
        rows = np.flatnonzero((index.column == number) & (index.length > 1))
        if not rows.size:
            continue
        # (tokens + 1,): trained tokens before each position, so that a row is one difference
        before = np.zeros(len(column.weights) + 1, dtype=np.int64)
        np.cumsum(column.weights > 0, out=before[1:])
        start = index.start[rows]
        trained[rows] = before[start + index.length[rows]] - before[start + 1]
    return trained


def gather(columns: Sequence[TokenColumns], index: RowIndex) -> TokenColumns:
    """The tokens and weights of the rows, one after the other, in new arrays."""
    total = int(index.length.sum())
    if total and _is_one_stretch(index):
        part = columns[int(index.column[0])]
        start = int(index.start[0])
        return TokenColumns(np.array(part.tokens[start : start + total]), np.array(part.weights[start : start + total]))
    tokens, weights = np.empty(total, dtype=np.int32), np.empty(total, dtype=np.float32)
    ends = np.cumsum(index.length)
    for number, column in enumerate(columns):
        rows = np.flatnonzero(index.column == number)
        lengths = index.length[rows]
        # position within its row of every token, then where it comes from and where it goes
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        source = np.repeat(index.start[rows], lengths) + within
        target = np.repeat(ends[rows] - lengths, lengths) + within
        tokens[target] = column.tokens[source]
        weights[target] = column.weights[source]
    return TokenColumns(tokens, weights)


def _is_one_stretch(index: RowIndex) -> bool:
    """Whether the rows lie one after the other in the same columns."""
    follows = index.start[1:] == index.start[:-1] + index.length[:-1]
    return bool((index.column == index.column[0]).all() and follows.all())
