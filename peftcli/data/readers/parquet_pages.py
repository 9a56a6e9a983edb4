"""What the pages of a Parquet file unpack to, as their headers say it, before anything is unpacked.

The footer says what a column comes to, and so does the header of each of its pages; a reader allocates and unpacks by
the headers, and never past them, whatever the footer says. Headers are structures of Thrift's compact protocol; they are
walked in the order and to the end in which the reader meets them (github.com/apache/parquet-format, README and
parquet.thrift).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_HEADER_BYTES = 1 << 20
"""Headers hold statistics: the least and the greatest value of a page, which may be long texts."""
LEVEL_BYTES = 4
"""What a reader keeps of a value at least: whether it is there, and where its list begins, 16 bits each."""
_FIRST_BYTES = 256
_DEEPEST = 16
_DATA_PAGES = {5: 1, 8: 1}
"""Where a header says how many values its page has: the field of the kind of page, and the field within."""
_UNPACKED, _COMPRESSED = 2, 3

_TRUE, _FALSE, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _MAP, _STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, (9, 10), 11, 12


@dataclass(frozen=True)
class Page:
    """Sizes of a page, packed and unpacked, and its values; a dictionary's values are not those of rows."""

    packed_bytes: int
    num_bytes: int
    num_values: int


class BadHeader(ValueError):
    """Bytes that are no header of a page."""


def pages_of(raw: Any, column: Any) -> Iterator[Page]:
    """The pages of a column chunk (pyarrow's `ColumnChunkMetaData`), until they hold the values that it has.

    Raises `BadHeader`.
    """
    first = column.dictionary_page_offset
    start = min(column.data_page_offset, first) if first else column.data_page_offset
    end, seen = start + column.total_compressed_size, 0
    while start < end and seen < column.num_values:
        header, length = _header_at(raw, start)
        page = Page(_integer(header, _COMPRESSED), _integer(header, _UNPACKED), _values(header))
        if min(page.packed_bytes, page.num_bytes, page.num_values) < 0:
            raise BadHeader("a page of less than nothing")
        yield page
        seen += page.num_values
        start += length + page.packed_bytes


def _header_at(raw: Any, place: int) -> tuple[dict[int, Any], int]:
    """The header at a place of the file, and how long it is."""
    size = _FIRST_BYTES
    while True:
        raw.seek(place)
        data = raw.read(size)
        try:
            reader = _Reader(data)
            return reader.struct(), reader.place
        except IndexError:
            if size >= MAX_HEADER_BYTES or len(data) < size:
                raise BadHeader("a header of a page does not end") from None
            size *= 16


def _integer(header: dict[int, Any], field: int) -> int:
    value = header.get(field)
    if not isinstance(value, int):
        raise BadHeader("a page that does not say its size")
    return value


def _values(header: dict[int, Any]) -> int:
    for kind, field in _DATA_PAGES.items():
        if isinstance(of_kind := header.get(kind), dict):
            return _integer(of_kind, field)
    return 0


class _Reader:
    """Reads Thrift's compact protocol. Raises `IndexError` where bytes are missing, `BadHeader` where they are none."""

    def __init__(self, data: bytes) -> None:
        self.place = 0
        self._data = data
        self._depth = 0

    def struct(self) -> dict[int, Any]:
        """Field number -> value, as far as it is a number or a structure; others are passed over."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise BadHeader("a header that is nested too deeply")
        found, number = {}, 0
        while byte := self._byte():
            step, kind = byte >> 4, byte & 15
            number = number + step if step else self._number()
            found[number] = {_TRUE: True, _FALSE: False}[kind] if kind in (_TRUE, _FALSE) else self._value(kind)
        self._depth -= 1
        return found

    def _byte(self) -> int:
        byte = self._data[self.place]
        self.place += 1
        return byte

    def _pass(self, count: int) -> None:
        self.place += count
        if self.place > len(self._data):
            raise IndexError

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise BadHeader("a number that does not end")

    def _number(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _value(self, kind: int) -> Any:
        if kind in _INTEGERS:
            return self._number()
        if kind == _STRUCT:
            return self.struct()
        if kind == _BINARY:
            return self._pass(self._varint())
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._pass(1)
        if kind == _DOUBLE:
            return self._pass(8)
        if kind in _LISTS:
            return self._list()
        raise BadHeader("a field of no known kind")

    def _list(self) -> None:
        byte = self._byte()
        count = byte >> 4 if byte >> 4 < 15 else self._varint()
        for _ in range(count):
            self._value(byte & 15)
