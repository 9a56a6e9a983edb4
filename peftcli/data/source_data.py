"""One source, read and encoded: everything that later steps need of it, and all that the token cache keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peftcli.data.doctor.base import Tallies
from peftcli.data.sources import FileFacts
from peftcli.data.store import UNLABELLED, LabelSets, RowIndex, TokenColumns


@dataclass(frozen=True)
class SourceData:
    """Rows of a source in its own order, before any choice, cut or mix.

    `length`, `file`, `line`: (rows,). `key`: (rows,) uint64, equal for equal token ids. `sketch`: (rows, parts) uint32,
    see `sketch.py`. `joins`: the rows are documents that may be joined and cut. `identity`: the hash of all
    that they depend on, under which they are cached.
    """

    columns: TokenColumns
    length: np.ndarray
    file: np.ndarray
    line: np.ndarray
    key: np.ndarray
    sketch: np.ndarray
    names: Sequence[str]
    inputs: Sequence[FileFacts]
    format: str
    why: str
    joins: bool
    rows_read: int
    dropped: dict[str, int]
    tallies: Tallies
    seconds: float
    identity: str
    label: np.ndarray
    """(rows,) int32: number of each row's labels in `label_sets`."""
    label_sets: LabelSets

    def index(self, column: int, file_offset: int, label_offset: int = 0) -> RowIndex:
        """The rows as an index; `column` and the offsets place this source among the others."""
        starts = np.cumsum(self.length) - self.length
        same = np.full(len(self.length), column, dtype=np.int32)
        label = np.where(self.label == UNLABELLED, UNLABELLED, self.label + label_offset).astype(np.int32)
        return RowIndex(same, starts, self.length, same, self.file + file_offset, self.line, label)
