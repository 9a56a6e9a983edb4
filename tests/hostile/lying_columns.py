"""Parquet and Arrow files in which every number may be another than what is there. Parquet is written byte by byte, in
Thrift's compact protocol, with one column `text` in one group of rows."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from typing import Any

import pyarrow
import pyarrow.ipc

MANY = 2**31 - 1
_DATA, _DICTIONARY = 0, 2
_TEXTS, _NUMBERS = 6, 1
_OPTIONAL, _REPEATED = 1, 2
_PLAIN, _RUNS = 0, 3
_ZSTD = 6


class Wide(int):
    """A number that is written as one of 64 bits."""


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _value(value: Any) -> tuple[int, bytes]:
    """The kind of a field, and its bytes."""
    if isinstance(value, int):
        return (6 if isinstance(value, Wide) else 5), _varint(value << 1)
    if isinstance(value, bytes):
        return 8, _varint(len(value)) + value
    if isinstance(value, list):
        items = [_value(item) for item in value]
        return 9, bytes([len(value) << 4 | items[0][0]]) + b"".join(data for _, data in items)
    return 12, thrift(value)


def thrift(fields: dict[int, Any]) -> bytes:
    found, last = b"", 0
    for number, value in fields.items():
        kind, data = _value(value)
        found += bytes([(number - last) << 4 | kind]) + data
        last = number
    return found + b"\0"


def packed(text: bytes, count: int = 1) -> bytes:
    """A text `count` times, which is never there as a whole."""
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        for _ in range(count):
            stream.write(text)
    return sink.getvalue().to_pybytes()


def page(body: bytes, unpacked: int, values: int, *, kind: int = _DATA) -> bytes:
    facts = {1: values, 2: _PLAIN} | ({} if kind == _DICTIONARY else {3: _RUNS, 4: _RUNS})
    return thrift({1: kind, 2: unpacked, 3: len(body), (7 if kind == _DICTIONARY else 5): facts}) + body


def file_of(
    pages: Iterable[bytes], *, rows: int = 1, physical: int = _TEXTS, repetition: int = 0, first: int = 0
) -> bytes:
    """A file of these pages, whose footer says that they come to 100 bytes."""
    data = b"".join(pages)
    column = {1: physical, 2: [_PLAIN, _RUNS], 3: [b"text"], 4: _ZSTD, 5: Wide(rows), 6: Wide(100), 7: Wide(len(data))}
    column |= {9: Wide(4)} | ({11: Wide(first)} if first else {})
    leaf = {1: physical, 3: repetition, 4: b"text"} | ({6: 0} if physical == _TEXTS else {})
    group = {1: [{2: Wide(4), 3: column}], 2: Wide(100), 3: Wide(rows)}
    footer = thrift({1: 1, 2: [{4: b"schema", 5: 1}, leaf], 3: Wide(rows), 4: [group], 6: b"somebody"})
    return b"PAR1" + data + footer + struct.pack("<I", len(footer)) + b"PAR1"


def _long_page(size: int, kind: int = _DATA) -> bytes:
    """One text of so many bytes."""
    body = packed(struct.pack("<I", size) + b"x" * (size % (1 << 20))) + packed(b"x" * (1 << 20), size >> 20)
    return page(body, size + 4, 1, kind=kind)


def _run(value: int, count: int) -> bytes:
    return _varint(count << 1) + bytes([value])


def _levels(*levels: bytes) -> bytes:
    body = b"".join(struct.pack("<I", len(level)) + level for level in levels)
    return page(packed(body), len(body), MANY)


HI = page(packed(b"\x02\0\0\0hi"), 6, 1)


def honest() -> bytes:
    return file_of([HI])


LYING = {
    "a long page": lambda: file_of([_long_page(3 << 29)]),
    "long pages": lambda: file_of([_long_page(100 << 20)] * 300, rows=300),
    "a page that promises": lambda: file_of([page(packed(b"\x02\0\0\0hi"), MANY, 1)]),
    "dictionaries": lambda: file_of([_long_page(500 << 20, _DICTIONARY)] * 50 + [HI], first=4),
    "one row of nulls": lambda: file_of(
        [_levels(_run(0, 1) + _run(1, MANY - 1), _run(0, MANY))], physical=_NUMBERS, repetition=_REPEATED
    ),
    "nulls": lambda: file_of([_levels(_run(0, MANY))], physical=_NUMBERS, repetition=_OPTIONAL, rows=MANY),
    "headers that nest": lambda: file_of([b"\x1c" * 5_000]),
    "headers that do not end": lambda: file_of([b"\x15" + b"\xff" * (2 << 20)]),
    "negative sizes": lambda: file_of([b"\x15\0\x15\x0b\x15\x0b" + HI[5:]] * 3),
}
"""Name -> Parquet files that are not what they say."""


def promising_arrow(*, stream: bool) -> bytes:
    """A compressed batch, the first buffer of which says that it comes to a terabyte."""
    table = pyarrow.table({"text": ["hi " * 50] * 1_000})
    sink = io.BytesIO()
    make = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with make(sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    offsets = struct.pack("<q", 4 * 1_001)
    data = sink.getvalue()
    assert data.count(offsets) == 1
    return data.replace(offsets, struct.pack("<q", 1 << 40))
