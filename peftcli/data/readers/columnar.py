"""Parquet and Arrow (IPC file or stream, Feather)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peftcli.data.readers.arrow_values import plain_rows
from peftcli.data.readers.base import CHUNK_ROWS, Chunk, Reading
from peftcli.data.readers.compressed import SUFFIXES
from peftcli.data.readers.verified import open_raw
from peftcli.errors import DataError


def read_parquet(reading: Reading) -> Iterator[Chunk]:
    """Chunks of rows, numbered from 1. A truncated file is a `DataError`."""
    import pyarrow
    import pyarrow.parquet

    _refuse_compression(reading)
    try:
        with open_raw(reading.path, reading.hashed, reading.name) as raw, pyarrow.parquet.ParquetFile(raw) as file:
            yield from chunks_of(file.iter_batches(batch_size=CHUNK_ROWS))
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(reading, "Parquet", error) from error


def read_arrow(reading: Reading) -> Iterator[Chunk]:
    """Chunks of rows, numbered from 1, of an Arrow file or stream."""
    import pyarrow
    import pyarrow.ipc

    _refuse_compression(reading)
    try:
        with open_raw(reading.path, reading.hashed, reading.name) as raw, pyarrow.PythonFile(raw, mode="r") as stream:
            try:
                file = pyarrow.ipc.open_file(stream)
                batches: Iterator[Any] = (file.get_batch(number) for number in range(file.num_record_batches))
            except pyarrow.ArrowInvalid:
                stream.seek(0)
                batches = iter(pyarrow.ipc.open_stream(stream))
            yield from chunks_of(batches)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(reading, "Arrow", error) from error


def chunks_of(batches: Iterator[Any]) -> Iterator[Chunk]:
    """Record batches as chunks of at most `CHUNK_ROWS` rows."""
    count = 0
    for batch in batches:
        for start in range(0, batch.num_rows, CHUNK_ROWS):
            rows = plain_rows(batch.slice(start, CHUNK_ROWS))
            yield Chunk(rows, list(range(count + 1, count + len(rows) + 1)))
            count += len(rows)


def _refuse_compression(reading: Reading) -> None:
    if reading.path.suffix in SUFFIXES:
        raise DataError(
            "a columnar file compressed once more is not read", where=reading.name, fix="decompress it first"
        )


def _damaged(reading: Reading, kind: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:160]
    return DataError(f"not a whole {kind} file: {reason}", where=reading.name, fix="write or fetch the file again")
