"""Rows as tokens, in columns: flat arrays and where each row starts, so that a view of rows copies nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from peftcli.data.rows import Label

LabelSets = tuple[tuple[Label, ...], ...]
"""The labels of rows: each different one (or list of them) once, found by number."""
UNLABELLED = -1
"""The number of the labels of a row that has none."""


@dataclass(frozen=True)
class Origin:
    """Where a row came from. `line` counts from 1; where a file has no lines it is the row number."""

    source: int
    file: str
    line: int


@dataclass(frozen=True)
class EncodedRow:
    """One row: `input_ids` (length,) int32; `weights` (length,) float32, the loss weight of each token AS A TARGET.

    `parts` (length,) int32: which part of the row each token belongs to, as its encoding numbers them; empty where a
    row is one part. `labels`: what the row is labelled with, as the data has it. `reference`: what the model at the start
    of training says of the row, (numbers,) float64; empty where nobody has asked it.
    """

    input_ids: np.ndarray
    weights: np.ndarray
    origin: Origin
    parts: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    labels: tuple[Label, ...] = ()
    reference: np.ndarray = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class TokenColumns:
    """Flat tokens and weights that rows point into; may be memory-mapped. Both (tokens,), int32 and float32.

    `parts`: (tokens,) int32, or empty where rows have one part. `from_before`: a target is predicted from the token
    before it, so that the first of a row is none.
    """

    tokens: np.ndarray
    weights: np.ndarray
    parts: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    from_before: bool = True


@dataclass(frozen=True)
class RowIndex:
    """One entry a row: which columns, where it starts, how long it is, where it came from, and the number of its
    labels in the store's table (`UNLABELLED`: none). All (rows,)."""

    column: np.ndarray
    start: np.ndarray
    length: np.ndarray
    source: np.ndarray
    file: np.ndarray
    line: np.ndarray
    label: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int32))

    def __post_init__(self) -> None:
        if len(self.label) != len(self.length):
            assert not len(self.label), "labels of all rows or of none"
            object.__setattr__(self, "label", np.full(len(self.length), UNLABELLED, dtype=np.int32))

    def take(self, rows: np.ndarray) -> RowIndex:
        """These rows, in this order."""
        return RowIndex(*(array[rows] for array in vars(self).values()))

    @staticmethod
    def concatenate(parts: Sequence[RowIndex]) -> RowIndex:
        """The rows of several, one after the other."""
        names = [each.name for each in fields(RowIndex)]
        return RowIndex(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class TokenStore:
    """Rows for training. `lengths` and `trained` (targets that carry loss) are (rows,) int64; `reference` (rows, numbers)
    is what the model at the start says of them, None where it was not asked."""

    def __init__(
        self,
        columns: Sequence[TokenColumns],
        index: RowIndex,
        files: Sequence[str],
        labels: LabelSets = (),
        reference: np.ndarray | None = None,
    ) -> None:
        self.columns = tuple(columns)
        self.index = index
        self.files = tuple(files)
        self.label_sets = labels
        self.reference = reference
        self.lengths = index.length.astype(np.int64)
        self.trained = count_trained(self.columns, index)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> EncodedRow:
        """A row as arrays of its own. `IndexError` beyond the end."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        start, length = int(self.index.start[row]), int(self.index.length[row])
        columns = self.columns[int(self.index.column[row])]
        weights = np.array(columns.weights[start : start + length], dtype=np.float32)
        if columns.from_before:
            # the first token of a row has no token before it to be predicted from
            weights[:1] = 0
        tokens = np.array(columns.tokens[start : start + length], dtype=np.int32)
        parts = np.array(columns.parts[start : start + length], dtype=np.int32)
        known = np.empty(0) if self.reference is None else self.reference[row]
        return EncodedRow(tokens, weights, self.origin(row), parts, self.labels(row), known)

    def __iter__(self) -> Iterator[EncodedRow]:
        return (self[row] for row in range(len(self)))

    def origin(self, row: int) -> Origin:
        """Where a row came from."""
        file = self.files[int(self.index.file[row])]
        return Origin(int(self.index.source[row]), file, int(self.index.line[row]))

    def labels(self, row: int) -> tuple[Label, ...]:
        """What a row is labelled with, as the data has it."""
        number = int(self.index.label[row])
        return () if number == UNLABELLED else self.label_sets[number]

    def take(self, rows: np.ndarray) -> TokenStore:
        """The same columns, other rows: nothing is copied."""
        known = None if self.reference is None else self.reference[rows]
        return TokenStore(self.columns, self.index.take(rows), self.files, self.label_sets, known)

    def with_reference(self, reference: np.ndarray) -> TokenStore:
        """The same rows with what the model at the start says of each, (rows, numbers)."""
        assert len(reference) == len(self), "of every row"
        return TokenStore(self.columns, self.index, self.files, self.label_sets, reference)


def count_trained(columns: Sequence[TokenColumns], index: RowIndex) -> np.ndarray:
    """Targets that carry loss, a row: (rows,) int64. A row that is labelled as a whole is one target."""
    trained = np.zeros(len(index.length), dtype=np.int64)
    for number, column in enumerate(columns):
        first = int(column.from_before)
        rows = np.flatnonzero((index.column == number) & (index.length > first))
        if not rows.size:
            continue
        # (tokens + 1,): trained tokens before each position, so that a row is one difference
        before = np.zeros(len(column.weights) + 1, dtype=np.int64)
        np.cumsum(column.weights > 0, out=before[1:])
        start = index.start[rows]
        trained[rows] = before[start + index.length[rows]] - before[start + first]
    found: np.ndarray = np.maximum(trained, (index.label != UNLABELLED).astype(np.int64))
    return found


def gather(columns: Sequence[TokenColumns], index: RowIndex) -> TokenColumns:
    """The tokens and weights of the rows, one after the other, in new arrays."""
    total = int(index.length.sum())
    # the common case, a source taken whole: one copy, no table of positions as large as its tokens
    if total and _is_one_stretch(index):
        part = columns[int(index.column[0])]
        start = int(index.start[0])
        tokens, weights, parts = (
            np.array(array[start : start + total]) for array in (part.tokens, part.weights, part.parts)
        )
        return TokenColumns(tokens, weights, parts, part.from_before)
    tokens, weights = np.empty(total, dtype=np.int32), np.empty(total, dtype=np.float32)
    has_parts = any(len(column.parts) for column in columns)
    parts = np.zeros(total if has_parts else 0, dtype=np.int32)
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
        if len(column.parts):
            parts[target] = column.parts[source]
    return TokenColumns(tokens, weights, parts, all(column.from_before for column in columns))


def _is_one_stretch(index: RowIndex) -> bool:
    """Whether the rows lie one after the other in the same columns."""
    follows = index.start[1:] == index.start[:-1] + index.length[:-1]
    return bool((index.column == index.column[0]).all() and follows.all())
