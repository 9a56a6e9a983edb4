"""Which reader reads which file, by its suffix."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from peftcli import files
from peftcli.data.faults import FaultLog
from peftcli.data.readers import columnar, conll, delimited, json_array, jsonl, plain_text
from peftcli.data.readers.base import Chunk, Reader, Reading
from peftcli.data.readers.compressed import plain_suffix
from peftcli.data.readers.verified import HashedFile
from peftcli.errors import DataError

READERS: dict[str, Reader] = {
    ".jsonl": jsonl.read,
    ".ndjson": jsonl.read,
    ".json": json_array.read,
    ".csv": delimited.read,
    ".tsv": delimited.read,
    ".parquet": columnar.read_parquet,
    ".arrow": columnar.read_arrow,
    ".feather": columnar.read_arrow,
    ".txt": plain_text.read,
    ".conll": conll.read,
    ".bio": conll.read,
}
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz")
BY_LINE = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".conll", ".bio")


def is_data_file(path: Path) -> bool:
    """Whether some reader knows the file by its name, with or without compression."""
    return plain_suffix(path) in READERS


def is_by_row(path: Path) -> bool:
    """Whether places in this file are rows rather than lines."""
    return plain_suffix(path) not in BY_LINE


def read_file(
    path: Path, name: str, faults: FaultLog, after: int = 0, hashed: HashedFile | None = None
) -> Iterator[Chunk]:
    """Chunks of a file's rows after line (or row) `after`, of the bytes that were `hashed`.

    Raises `DataError` for an empty or unknown file.
    """
    check_kind(path, name)
    empty = True
    before = faults.count
    # a table needs its first line to be understood, so only readers of bare lines pass over them themselves
    passed_over = after if plain_suffix(path) in (".jsonl", ".ndjson", ".txt") else 0
    for chunk in READERS[plain_suffix(path)](Reading(path, name, faults, passed_over, hashed)):
        empty = False
        # a chunk may begin before the line at which a stream goes on
        if chunk.lines[-1] > after:
            yield chunk if chunk.lines[0] > after else rows_after(chunk, after)
    # an empty rest is the end of a stream; a file whose every row is a fault has said so
    if not after and empty and faults.count == before:
        raise DataError("the file holds no rows", where=name, fix="give a file with at least one row")


def rows_after(chunk: Chunk, line: int) -> Chunk:
    """The rows of a chunk after a line."""
    first = bisect_right(chunk.lines, line)
    return Chunk(chunk.rows[first:], chunk.lines[first:])


_STARTS = {".parquet": (b"PAR1",), ".arrow": (b"ARROW1", b"\xff\xff\xff\xff"), ".feather": (b"ARROW1", b"FEA1")}


def check_start(path: Path, name: str) -> None:
    """Raises `DataError` for a file that cannot be what its name says, before it is hashed: it may be endless holes."""
    with files.open_regular(path) as stream:
        # 64 bytes hold every mark below; an empty file has a message of its own
        start = stream.read(64)
    starts = _STARTS.get(path.suffix.lower())
    if starts is not None and start and not start.startswith(starts):
        kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
        raise DataError(f"not a whole {kind} file", where=name, fix="write or fetch the file again")
    if len(start) == 64 and not start.strip(b"\0"):
        raise DataError("the file begins with NUL bytes: it is not text", where=name, fix="write the file again")


def check_kind(path: Path, name: str) -> None:
    """Raises `DataError` for archives and unknown suffixes, naming what is read."""
    suffix = plain_suffix(path)
    if path.suffix.lower() in ARCHIVES or suffix in ARCHIVES:
        raise DataError("archives are not read", where=name, fix="unpack it and name the files inside")
    if suffix not in READERS:
        known = " ".join(READERS)
        raise DataError(f"unknown kind of data file {path.name!r}", where=name, fix=f"one of {known} (also .gz, .zst)")
