"""A stream as the training loop sees it: numbered batches, found again after an interruption through saved cursors."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from peftcli import files
from peftcli.data.store import EncodedRow, TokenStore
from peftcli.data.stream import Block, Cursor, RowStream

CheckRows = Callable[[TokenStore], None]
"""Raises a `DataError` for rows that cannot be trained on."""
_LIMIT_BYTES = 64 << 20
_CHECK = "check"


class StreamOrder:
    """Batches of a stream by number. Stepping forward reads on; any other number is found from the nearest cursor.

    `steps`: batches in all (a stream has no epochs). `cursors`: a file of JSON lines where the beginning of each block is
    noted and looked for; without it (or with a damaged one) the blocks before are read again, with the same outcome.
    `check`: called with the rows of each block before any of them is given out.
    """

    def __init__(
        self,
        stream: RowStream,
        *,
        batch_size: int,
        steps: int,
        cursors: Path | None = None,
        check: CheckRows | None = None,
    ) -> None:
        self._stream = stream
        self._batch_size = batch_size
        self._steps = steps
        self._check = check
        self._path = cursors
        self._known = _read_cursors(cursors, stream.start())
        self._block: tuple[Cursor, Block] | None = None

    def keep_cursors(self, path: Path) -> None:
        """Notes block beginnings in a file from now on, and knows those that it holds; a damaged file is written again."""
        found = _read_cursors(path, self._known[0])
        if len(found) > len(self._known):
            self._known = found
        # the first cursor is the beginning, which is known without a file
        text = "".join(f"{_noted(cursor)}\n" for cursor in self._known[1:])
        if text != (path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""):
            files.write_text(path, text)
        self._path = path

    @property
    def steps_per_epoch(self) -> int:
        """All steps: a stream has one epoch."""
        return self._steps

    def batch(self, epoch: int, index: int) -> np.ndarray:
        """Numbers of the rows of a batch, for `rows`; (rows,) int64. `IndexError` beyond the last step."""
        if not 0 <= index < self._steps:
            raise IndexError(f"batch {index} of {self._steps}")
        number = epoch * self._steps + index
        cursor, block = self._block_of(number)
        size = len(block.batches[number - cursor.batches])
        # numbers of rows are numbers of batches and places in them, so that `rows` needs no table
        return number * self._batch_size + np.arange(size)

    def rows(self, numbers: Sequence[int]) -> list[EncodedRow]:
        """The rows of the numbers that `batch` gave."""
        found = []
        for row in numbers:
            number, place = divmod(int(row), self._batch_size)
            cursor, block = self._block_of(number)
            found.append(block.store[int(block.batches[number - cursor.batches][place])])
        return found

    def _block_of(self, number: int) -> tuple[Cursor, Block]:
        while self._block is None or not self._holds(number):
            if self._block is None or number < self._block[0].batches or number >= self._block[1].next.batches:
                self._load(number)
        return self._block

    def _holds(self, number: int) -> bool:
        assert self._block is not None
        cursor, block = self._block
        return cursor.batches <= number < block.next.batches

    def _load(self, number: int) -> None:
        # the last cursor at or before the batch: from there on blocks are read until it is reached
        place = bisect_right([cursor.batches for cursor in self._known], number) - 1
        cursor = self._known[place]
        block = self._stream.block(cursor)
        if self._check is not None:
            self._check(block.store)
        self._block = cursor, block
        # only the last one has a successor that is not known yet
        if place == len(self._known) - 1:
            self._known.append(block.next)
            if self._path is not None:
                files.append_line(self._path, _noted(block.next))


def _read_cursors(path: Path | None, start: Cursor) -> list[Cursor]:
    """The cursors in a file as far as they follow each other; nothing after a torn or changed line counts."""
    known = [start]
    if path is None or not path.is_file():
        return known
    for line in files.read_bounded(path, limit_bytes=_LIMIT_BYTES).decode("utf-8", "replace").splitlines():
        try:
            noted = json.loads(line)
            cursor = Cursor.from_dict({key: value for key, value in noted.items() if key != _CHECK})
            if _noted(cursor) != line:
                break
        except (ValueError, KeyError, TypeError, AttributeError):
            break
        # a gap, or another number of sources, is of another recipe or version
        if cursor.block == len(known) and len(cursor.at) == len(start.at):
            known.append(cursor)
    return known


def _noted(cursor: Cursor) -> str:
    """A cursor as its line, with a digest of it: another digit anywhere would be another place in the data."""
    text = json.dumps(cursor.to_dict())
    # 16 digits: enough against an accident
    return json.dumps({**cursor.to_dict(), _CHECK: files.sha256_bytes(text.encode())[:16]})
