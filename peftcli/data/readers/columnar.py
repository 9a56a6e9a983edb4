"""Parquet and Arrow (IPC file or stream, Feather)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from peftcli.data.readers.arrow_messages import BadMessage, bodies_of
from peftcli.data.readers.arrow_values import plain_rows
from peftcli.data.readers.base import CHUNK_ROWS, VALUE_BYTES, Chunk, Reading
from peftcli.data.readers.compressed import SUFFIXES
from peftcli.data.readers.parquet_pages import LEVEL_BYTES, BadHeader, pages_of
from peftcli.data.readers.verified import open_raw
from peftcli.errors import DataError

if TYPE_CHECKING:
    from peftcli.data.readers.unpacked import Unpacked

_LOOKED_AHEAD_BYTES = 64 << 20
"""Up to this size a file is gone through once before a row of it is worked on: it may stand for days of work."""


def read_parquet(reading: Reading) -> Iterator[Chunk]:
    """Chunks of rows, numbered from 1. A truncated file is a `DataError`."""
    import pyarrow

    _refuse_compression(reading)
    try:
        yield from _chunks(reading, _parquet_batches)
    except (pyarrow.ArrowException, OSError, BadHeader) as error:
        raise _damaged(reading, "Parquet", error) from error


def read_arrow(reading: Reading) -> Iterator[Chunk]:
    """Chunks of rows, numbered from 1, of an Arrow file or stream."""
    import pyarrow

    _refuse_compression(reading)
    try:
        yield from _chunks(reading, _arrow_batches)
    except (pyarrow.ArrowException, OSError, BadMessage) as error:
        raise _damaged(reading, "Arrow", error) from error


def _chunks(reading: Reading, batches_of: Callable[[Any, Unpacked], Iterator[Any]]) -> Iterator[Chunk]:
    """Chunks of all rows; of a small file once it is known that they are no more than it may stand for."""
    if reading.path.stat().st_size <= _LOOKED_AHEAD_BYTES:
        # once for nothing but the bound, then for the rows
        for _ in _pieces(reading, batches_of):
            pass
    count = 0
    for piece in _pieces(reading, batches_of):
        rows = plain_rows(piece)
        yield Chunk(rows, list(range(count + 1, count + len(rows) + 1)))
        count += len(rows)


def _pieces(reading: Reading, batches_of: Callable[[Any, Unpacked], Iterator[Any]]) -> Iterator[Any]:
    # brings numpy, for which checking a recipe does not wait
    from peftcli.data.readers.unpacked import Unpacked

    with open_raw(reading.path, reading.hashed, reading.name) as raw:
        unpacked = Unpacked(reading.name, reading.path.stat().st_size)
        for batch in batches_of(raw, unpacked):
            yield from unpacked.pieces(batch)


def _parquet_batches(raw: Any, unpacked: Unpacked) -> Iterator[Any]:
    """Record batches in which texts stay in their dictionaries, of a file that declares no more than it may."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(raw) as file:
        facts = file.metadata
    leaves = [facts.schema.column(number) for number in range(facts.num_columns)]
    declared = facts.num_rows * VALUE_BYTES
    unpacked.check(declared)
    for group in range(facts.num_row_groups):
        for number, leaf in enumerate(leaves):
            declared += _column_bytes(raw, facts.row_group(group).column(number), leaf, unpacked, declared)
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    # `ParquetFile` has read the end of the file; the second one begins at its start
    raw.seek(0)
    # texts stay in their dictionaries: a value that repeats a million times is held once
    with pyarrow.parquet.ParquetFile(raw, read_dictionary=texts) as file:
        yield from file.iter_batches(batch_size=CHUNK_ROWS)


def _column_bytes(raw: Any, column: Any, leaf: Any, unpacked: Unpacked, before: int) -> int:
    """What a column chunk comes to, by the footer and by its pages, whichever says more.

    Raises `DataError` where it is more than the file may stand for, or one of its pages is.
    """
    width = max(VALUE_BYTES, leaf.length or 0)
    told = max(column.total_uncompressed_size, column.num_values * width)
    unpacked.check(before + told)
    # of a list that is read whole, a row may have as many values as it says
    level = LEVEL_BYTES if leaf.max_repetition_level else 0
    num_bytes = num_values = 0
    for page in pages_of(raw, column):
        unpacked.check_piece(max(page.num_bytes, page.num_values * level), page.packed_bytes)
        num_bytes, num_values = num_bytes + page.num_bytes, num_values + page.num_values
        unpacked.check(before + max(num_bytes, num_values * width))
    return int(max(told, num_bytes, num_values * width))


def _arrow_batches(raw: Any, unpacked: Unpacked) -> Iterator[Any]:
    import pyarrow
    import pyarrow.ipc

    total = 0
    for body in bodies_of(raw, unpacked.num_bytes):
        unpacked.check_piece(body.num_bytes, body.packed_bytes)
        total += body.num_bytes
        unpacked.check(total)
    raw.seek(0)
    with pyarrow.PythonFile(raw, mode="r") as stream:
        try:
            file = pyarrow.ipc.open_file(stream)
            batches: Iterator[Any] = (file.get_batch(number) for number in range(file.num_record_batches))
        # stream and file are different layouts under one suffix
        except pyarrow.ArrowInvalid:
            stream.seek(0)
            batches = iter(pyarrow.ipc.open_stream(stream))
        yield from batches


def _refuse_compression(reading: Reading) -> None:
    if reading.path.suffix in SUFFIXES:
        raise DataError(
            "a columnar file compressed once more is not read", where=reading.name, fix="decompress it first"
        )


def _damaged(reading: Reading, kind: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:160]
    return DataError(f"not a whole {kind} file: {reason}", where=reading.name, fix="write or fetch the file again")
