"""Opens a data file, plain, .gz or .zst, with a bound on how far it may expand."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from peftcli.data.readers.base import Reading
from peftcli.data.readers.verified import open_raw
from peftcli.errors import DataError, DeviceError

# text compresses to a quarter, repetitive logs to a thirtieth; a hundredth is a bomb, or holes
MAX_RATIO = 100
"""How many times its own size a file may expand to."""
# a small file of repeated rows may expand further than a hundred times
FREE_BYTES = 16 << 20
MAX_BYTES = 64 << 30
SUFFIXES = (".gz", ".zst")
"""Endings of compressed files; the ending before it says what is inside."""


class BoundedStream(io.RawIOBase):
    """Reads a decompressed stream and stops it at 100 times the size of its file, and at 64 GiB in all."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._limit = min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * path.stat().st_size))
        self._count = 0

    def readable(self) -> bool:
        """True: it can be read, and nothing else."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer; `DataError` where the file has expanded too far."""
        data = self._stream.read(len(buffer))
        # counted before it is handed on: the reader never sees more than the limit
        self._count += len(data)
        if self._count > self._limit:
            raise DataError(
                f"the file expands to more than {self._limit:,} bytes ({MAX_RATIO} times its size): refused",
                where=str(self._path),
                fix="decompress it yourself if you trust it, and name the plain file",
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Closes the decompressor with it."""
        self._stream.close()
        super().close()


def _decompressed(path: Path, raw: Any) -> Any:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw, mode="rb")
    try:
        import zstandard
    except ImportError as error:
        raise DeviceError(
            ".zst files need the package zstandard", where=str(path), fix="pip install 'peftcli[zstd]'"
        ) from error
    # 2^27: what `zstd --long` writes by default; a larger window is memory that the file asks for
    return zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(raw, closefd=False)


def unreadable(error: OSError, name: str) -> DataError:
    """For a file that the system does not let us read."""
    reason = error.strerror or str(error)
    return DataError(f"cannot read the file: {reason}", where=name, fix="check the path and its permissions")


@contextmanager
def open_bytes(reading: Reading) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed within bounds. A damaged or unreadable file is a `DataError`."""
    path = reading.path
    try:
        with open_raw(path, reading.hashed, reading.name) as raw:
            stream = raw if path.suffix not in SUFFIXES else BoundedStream(_decompressed(path, raw), path)
            with io.BufferedReader(stream, 1 << 20) as buffered:
                yield cast(BinaryIO, buffered)
    # before `OSError`, of which a damaged gzip file is one
    except _damage() as error:
        raise DataError(f"the compressed file is damaged: {error}", where=str(path), fix="fetch it again") from error
    except OSError as error:
        raise unreadable(error, str(path)) from error


def _damage() -> tuple[type[Exception], ...]:
    """What the decompressors raise for a damaged file."""
    try:
        from zstandard import ZstdError
    except ImportError:
        return (gzip.BadGzipFile, EOFError, zlib.error)
    return (gzip.BadGzipFile, EOFError, zlib.error, ZstdError)


def plain_suffix(path: Path) -> str:
    """The suffix that names the container, before .gz or .zst: `rows.jsonl.gz` -> `.jsonl`."""
    return Path(path.stem).suffix.lower() if path.suffix in SUFFIXES else path.suffix.lower()
