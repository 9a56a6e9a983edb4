"""What a check is, what it looks at, and what it finds."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from typing import Any, Protocol

import numpy as np

from peftcli.data.config import Severity
from peftcli.data.names import check_names
from peftcli.data.rows import ChatRow, ContrastRow, LabelRow, PairRow, PiecesRow, PreferenceRow, Row, TagRow, TextRow

# enough to look at; all of a systematic fault are alike
MAX_ROWS_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """What a check found in one file: the first row (line, or row number), how many, and what is wrong."""

    check: str
    severity: Severity
    message: str
    file: str
    row: int
    count: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


@dataclass
class Tally:
    """Rows of one file on which one check fired."""

    count: int = 0
    rows: list[int] = field(default_factory=list)
    message: str = ""

    def add(self, row: int, message: str) -> None:
        """Counts a row; the first message and the first few rows are kept for the report."""
        self.count += 1
        if len(self.rows) < MAX_ROWS_NAMED:
            self.rows.append(row)
        self.message = self.message or message


Tallies = dict[tuple[str, str], Tally]
"""(check, file) -> rows."""

Hit = tuple[str, int, str]
"""File, line, and what is wrong there."""


class RowBatch:
    """Rows as they were read, with all text of each row. `specials`: the text of the tokenizer's special tokens."""

    def __init__(self, rows: Sequence[Row], specials: Sequence[str] = ()) -> None:
        self.rows = rows
        self.specials = specials

    @cached_property
    def texts(self) -> list[str]:
        """All text of each row, in order."""
        return [row_text(row) for row in self.rows]

    @cached_property
    def joined(self) -> str:
        """All text at once: a quick search here shows whether rows must be looked at one by one."""
        return "\n".join(self.texts)


@dataclass(frozen=True)
class SplitRows:
    """Every row of a split before truncation. All arrays (rows,); `key` is equal exactly for equal token ids, `sketch`
    is (rows, parts), see `sketch.py`; `read(row)` gives its ids; `joined`: the rows are documents that are joined."""

    length: np.ndarray
    key: np.ndarray
    sketch: np.ndarray
    file: np.ndarray
    line: np.ndarray
    files: Sequence[str]
    joined: bool
    read: Callable[[int], np.ndarray]

    def place(self, row: int) -> str:
        """`file:line` of a row."""
        return f"{self.files[int(self.file[row])]}:{int(self.line[row])}"

    def hit(self, row: int, message: str) -> Hit:
        """A hit of a check on a row, with its place."""
        return self.files[int(self.file[row])], int(self.line[row]), message


@dataclass(frozen=True)
class Review:
    """The whole data set, for checks that compare rows."""

    train: SplitRows
    validation: SplitRows | None

    @property
    def splits(self) -> list[SplitRows]:
        """The splits of this data, training first."""
        return [self.train] if self.validation is None else [self.train, self.validation]


def trained_on(data: Review) -> list[int]:
    """Validation rows that are training rows too, by their places in the split."""
    if data.validation is None:
        return []
    # by sorting: the other way, a table of a narrow range, overflows in numpy 2.0.0 on keys beyond the signed integers
    found: list[int] = np.flatnonzero(np.isin(data.validation.key, data.train.key, kind="sort")).tolist()
    return found


class Collector(Protocol):
    """Gathers something over the rows of a source and gives its hits at the end."""

    def add(self, batch: RowBatch, file: str, lines: Sequence[int]) -> None:
        """Takes the rows of a chunk, which stand at `lines` of `file`."""

    def hits(self) -> Iterable[Hit]:
        """What is wrong, once every row has been seen."""


@dataclass(frozen=True)
class Check:
    """`scan` looks at rows one by one and gives (position, message); `collect` makes what gathers over a source;
    `review` looks at all encoded rows. A check has one of them, or is counted where rows are encoded and cut."""

    default: Severity
    about: str
    scan: Callable[[RowBatch], Iterable[tuple[int, str]]] | None = None
    collect: Callable[[], Collector] | None = None
    review: Callable[[Review], Iterable[Hit]] | None = None
    grave: Callable[[Review], bool] | None = None
    """Whether what it finds is so much that it fails unless the recipe gives the check a severity of its own."""


@cache
def load_check(name: str) -> Check:
    """The check of that name; `check_names` has all names."""
    found: Check = importlib.import_module(f"peftcli.data.doctor.checks.{name.replace('-', '_')}").CHECK
    return found


def all_checks() -> dict[str, Check]:
    """Name -> check."""
    return {name: load_check(name) for name in check_names()}


def row_text(row: Row) -> str:
    """All text of a row, for checks that look at characters."""
    if isinstance(row, TextRow):
        return row.text
    if isinstance(row, PiecesRow):
        return "".join(piece.text for piece in row.pieces)
    if isinstance(row, ChatRow):
        return "\n".join(message["content"] for message in row.messages)
    if isinstance(row, LabelRow):
        return f"{row.text}\n{row.pair or ''}"
    if isinstance(row, TagRow):
        return " ".join(row.words)
    if isinstance(row, PairRow):
        return f"{row.source}\n{row.target}"
    if isinstance(row, ContrastRow):
        return "\n".join(row.texts)
    return "\n".join(_part_text(part) for part in _parts(row))


def _parts(row: PreferenceRow) -> list[Any]:
    return [part for part in (row.prompt, row.chosen, row.rejected) if part is not None]


def _part_text(part: Any) -> str:
    return part if isinstance(part, str) else "\n".join(message["content"] for message in part)
