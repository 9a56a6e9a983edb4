"""Lines of a UTF-8 file with their numbers: byte order marks and CRLF are accepted, other encodings named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

from peftcli.data.faults import excerpt
from peftcli.data.readers.base import CHUNK_BYTES, CHUNK_ROWS, MAX_LINE_BYTES, Chunk, Reading
from peftcli.data.readers.compressed import open_bytes
from peftcli.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def chunks_of_lines(reading: Reading, add: Callable[[Chunk, str, int], None]) -> Iterator[Chunk]:
    """Chunks of what `add(chunk, line, number)` makes of each line that is not blank: a row, or a fault and none."""
    chunk, size = Chunk(), 0
    for number, line in read_lines(reading):
        if not line or line.isspace():
            continue
        before = len(chunk.rows)
        add(chunk, line, number)
        if len(chunk.rows) == before:
            continue
        size += len(line)
        if len(chunk.rows) == CHUNK_ROWS or size > CHUNK_BYTES:
            yield chunk
            chunk, size = Chunk(), 0
    if chunk.rows:
        yield chunk


def read_lines(reading: Reading) -> Iterator[tuple[int, str]]:
    """(line number, text without its end) of every line that is UTF-8; the others become faults."""
    with open_bytes(reading) as stream:
        for number, line in enumerate(_bounded_lines(stream, reading), 1):
            if number <= reading.after:
                continue
            data = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if number == 1:
                _refuse_wide_encodings(data, reading)
                # only the first line is asked: a file has one kind of line end
                _refuse_lone_returns(data, reading)
            try:
                yield number, data.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                reading.faults.add(*decoding_fault(data, error, f"{reading.name}:{number}"))


def _bounded_lines(stream: BinaryIO, reading: Reading) -> Iterator[bytes]:
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"the line is longer than {MAX_LINE_BYTES >> 20} MiB",
                where=f"{reading.name}:{number}",
                fix="one row per line; is this JSON Lines at all?",
            )
        yield line


def _refuse_wide_encodings(data: bytes, reading: Reading) -> None:
    if (found := _wide_encoding(data)) is not None:
        raise DataError(
            f"the file is {found}, not UTF-8", where=f"{reading.name}:1", fix=f"convert it: iconv -f {found} -t UTF-8"
        )


def _wide_encoding(data: bytes) -> str | None:
    """By the byte order mark, or by the zero bytes that every other byte of plain letters is."""
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    # a hundred letters show the pattern
    even, odd = data[:200:2], data[1:200:2]
    # three quarters: a few letters beyond Latin-1 have no zero byte
    if odd and odd.count(0) > len(odd) * 3 // 4 and not even.count(0):
        return "UTF-16LE"
    return "UTF-16BE" if even and even.count(0) > len(even) * 3 // 4 and not odd.strip(b"\n").count(0) else None


def _refuse_lone_returns(data: bytes, reading: Reading) -> None:
    """A file without a single line feed and with carriage returns inside has the line ends of old systems."""
    # a whole file of such lines arrives as one line, without a line feed at its end
    if not data.endswith(b"\n") and b"\r" in data.rstrip(b"\r"):
        raise DataError(
            "the lines end in carriage returns alone, which is read as one line",
            where=f"{reading.name}:1",
            fix="convert it: tr '\\r' '\\n' < OLD > NEW",
        )


def decoding_fault(data: bytes, error: UnicodeDecodeError, where: str) -> tuple[str, str, str]:
    """Message, place and fix for a byte that is not UTF-8, with its offset in the line and a guess of the encoding."""
    # bytes that Windows-1252 uses and Latin-1 leaves to control characters
    guess = "Windows-1252" if any(0x80 <= byte <= 0x9F for byte in data) else "Latin-1"
    around = data[max(0, error.start - 20) : error.start + 20].decode("utf-8", "backslashreplace")
    return (
        f"byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8 (perhaps {guess}): {excerpt(around)!s}",
        where,
        f"convert the file: iconv -f {guess} -t UTF-8",
    )
