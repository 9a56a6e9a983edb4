"""How much a columnar file unpacks to, known before it is unpacked.

Columns store a value once and point at it a million times (dictionaries, runs, views), so that a file of kilobytes can
stand for gigabytes. The size of each row is computed from the lengths of what is stored, and a file is held to the same
bound as a compressed one: `MAX_RATIO` times its own size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peftcli.data.readers.base import CHUNK_BYTES, CHUNK_ROWS, MAX_LINE_BYTES, VALUE_BYTES
from peftcli.data.readers.compressed import MAX_RATIO
from peftcli.errors import DataError

FREE_BYTES = 512 << 20
"""More than this is compared with the file. Rows that share an instruction or a list of tools unpack hundreds of times
(20,000 rows with the same 20 kB come to 400 MB, in a file of one), and so do columns of one value; they fit the memory."""
MAX_PART_RATIO = 20
"""A page or a batch is unpacked whole: one of more than `FREE_BYTES` must be packed no better than texts are."""


@dataclass
class Unpacked:
    """The bytes that the rows of one file come to, as far as they were seen."""

    name: str
    num_bytes: int
    """Size of the file."""
    rows: int = 0
    total: int = 0
    limit: int = field(init=False)

    def __post_init__(self) -> None:
        self.limit = max(FREE_BYTES, MAX_RATIO * self.num_bytes)

    def check(self, total: int) -> None:
        """Raises `DataError` where so many bytes are more than the file may stand for."""
        if total > self.limit:
            raise DataError(
                f"the file expands to more than {self.limit:,} bytes ({MAX_RATIO} times its size): refused",
                where=self.name,
                fix="write the rows as JSON Lines yourself if you trust the file, and name that one",
            )

    def check_piece(self, num_bytes: int, packed_bytes: int) -> None:
        """Raises `DataError` where a part that is unpacked at once is too large for the memory, and too well packed."""
        if num_bytes > max(FREE_BYTES, MAX_PART_RATIO * packed_bytes):
            raise DataError(
                f"{packed_bytes:,} bytes of the file unpack to {num_bytes:,} at once: refused",
                where=self.name,
                fix="write the file again with smaller pages or batches, or the rows as JSON Lines",
            )

    def pieces(self, batch: Any) -> Iterator[Any]:
        """The record batch in slices of at most `CHUNK_ROWS` rows and about `CHUNK_BYTES`, each row at most a line's length.

        Raises `DataError` for a longer row, and where all rows until now are more than the file may stand for.
        """
        ends = np.cumsum(self._row_bytes(batch))
        start = 0
        while start < batch.num_rows:
            # the sum up to this slice: the lengths are sums from the start of the batch
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + CHUNK_BYTES, side="right"))
            # at least one row, however long, so that the slices come to an end
            stop = min(max(stop, start + 1), start + CHUNK_ROWS, batch.num_rows)
            if ends[stop - 1] - before > MAX_LINE_BYTES:
                raise DataError(
                    f"the row is longer than {MAX_LINE_BYTES >> 20} MiB",
                    where=f"{self.name}:{self.rows + start + 1}",
                    fix="leave such rows or columns out of the file",
                )
            yield batch.slice(start, stop - start)
            start = stop
        self.rows += batch.num_rows

    def look_at(self, batch: Any) -> None:
        """The checks of `pieces`, for a record batch that is read in another way."""
        for _ in self.pieces(batch):
            pass

    def _row_bytes(self, batch: Any) -> Any:
        # before anything of that size is made: not even the array of lengths may be larger than the file may stand for
        self.check(self.total + VALUE_BYTES * batch.num_rows * batch.num_columns)
        sizes = np.full(batch.num_rows, VALUE_BYTES, dtype=np.float64)
        for column in batch.columns:
            sizes += self._sizes(column)
        self.total += int(sizes.sum())
        self.check(self.total)
        return sizes

    def _sizes(self, array: Any) -> Any:
        """Bytes of each value of an array, as a number for all or an array of numbers."""
        import pyarrow

        kind, types = array.type, pyarrow.types
        if (width := _width(kind)) is not None:
            return width
        self.check(VALUE_BYTES * len(array))
        if isinstance(kind, pyarrow.BaseExtensionType):
            return self._sizes(array.storage)
        if types.is_dictionary(kind):
            return self._taken(array.dictionary, _numbers(array.indices))
        if types.is_run_end_encoded(kind):
            # slices of an array keep its run ends, so places count from the offset
            places = np.arange(array.offset, array.offset + len(array))
            return self._taken(array.values, np.searchsorted(_numbers(array.run_ends), places, side="right"))
        if types.is_struct(kind):
            return VALUE_BYTES + sum(self._sizes(part) for part in array.flatten())
        if types.is_union(kind):
            return sum(self._of_all(array.field(number)) for number in range(kind.num_fields))
        return VALUE_BYTES + (self._listed(array) if kind.num_fields else _lengths(array))

    def _taken(self, values: Any, places: Any) -> Any:
        sizes = self._sizes(values)
        # one width for all values, or a dictionary without values (all rows are null): nothing to look up
        return sizes[places] if isinstance(sizes, np.ndarray) and len(sizes) else sizes

    def _of_all(self, array: Any) -> float:
        """Of a union any value may be any of its parts: no more than all of them."""
        sizes = self._sizes(array)
        return float(sizes.sum()) if isinstance(sizes, np.ndarray) else float(sizes) * len(array)

    def _listed(self, array: Any) -> Any:
        """Bytes of each list, map or view of a list: those of the values between its bounds."""
        starts, ends = _bounds(array)
        sizes = self._sizes(array.values)
        if not isinstance(sizes, np.ndarray):
            return (ends - starts) * float(sizes)
        # sums up to each value: every list is a difference of two
        sums = np.concatenate([np.zeros(1), np.cumsum(sizes)])
        return sums[ends] - sums[starts]


def _width(kind: Any) -> int | None:
    """Bytes of a value of a type of which all values have the same; None for others."""
    import pyarrow

    types = pyarrow.types
    if types.is_null(kind) or types.is_primitive(kind) or types.is_boolean(kind):
        return VALUE_BYTES
    if types.is_fixed_size_binary(kind) or types.is_decimal(kind):
        return VALUE_BYTES + int(kind.byte_width)
    parts = [kind.value_type] if types.is_fixed_size_list(kind) else list(kind) if types.is_struct(kind) else None
    if parts is None:
        return None
    widths = [_width(getattr(part, "type", part)) for part in parts]
    if None in widths:
        return None
    return VALUE_BYTES + sum(width or 0 for width in widths) * getattr(kind, "list_size", 1)


def _numbers(array: Any) -> Any:
    """An array of integers, with 0 where nothing is."""
    return np.asarray(array.fill_null(0)).astype(np.int64, copy=False)


def _lengths(array: Any) -> Any:
    """Bytes of each text or binary value; of views, which `binary_length` does not know, as they stand in the view."""
    import pyarrow
    import pyarrow.compute

    types = pyarrow.types
    if types.is_string_view(array.type) or types.is_binary_view(array.type):
        # views are 16 bytes, the length first, in 32-bit numbers
        views = np.frombuffer(array.buffers()[1], dtype=np.int32).reshape(-1, 4)
        return views[array.offset : array.offset + len(array), 0].astype(np.int64)
    return _numbers(pyarrow.compute.binary_length(array))


def _bounds(array: Any) -> tuple[Any, Any]:
    """Where the values of each list begin and end, among `array.values`."""
    import pyarrow

    types = pyarrow.types
    if types.is_fixed_size_list(array.type):
        starts = (np.arange(len(array)) + array.offset) * array.type.list_size
        return starts, starts + array.type.list_size
    offsets = _numbers(array.offsets)
    if types.is_list_view(array.type) or types.is_large_list_view(array.type):
        return offsets, offsets + _numbers(array.sizes)
    return offsets[:-1], offsets[1:]
