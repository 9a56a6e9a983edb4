"""What the buffers of an Arrow file or stream unpack to, as they say it themselves, before anything is unpacked.

A batch may be compressed buffer by buffer; each begins with the length that it comes to, and a reader makes room for that
and unpacks a whole batch at once. Where the messages are is in the file's footer, or they follow one another; they are
FlatBuffers tables (arrow.apache.org/docs/format/Columnar.html, section IPC, with Message.fbs and File.fbs).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAGIC = b"ARROW1"
_CONTINUES = 0xFFFFFFFF
_MAX_TABLE_BYTES = 16 << 20
_DICTIONARY, _BATCH = 2, 3
"""Kinds of messages that have a body."""


@dataclass(frozen=True)
class Body:
    """Sizes of a batch whose buffers are compressed, packed and unpacked."""

    packed_bytes: int
    num_bytes: int


class BadMessage(ValueError):
    """Bytes that are no message of Arrow's."""


def bodies_of(raw: Any, size: int) -> Iterator[Body]:
    """The compressed batches and dictionaries of a file of `size` bytes. Raises `BadMessage`."""
    try:
        for place in _blocks(raw, size) if _read(raw, 0, len(MAGIC)) == MAGIC else _messages(raw, size):
            yield from _body(raw, place)
    except struct.error as error:
        raise BadMessage("a message that points outside of itself") from error


def _read(raw: Any, place: int, count: int) -> bytes:
    raw.seek(place)
    return bytes(raw.read(count))


def _blocks(raw: Any, size: int) -> Iterator[int]:
    """Where the dictionaries and batches of a file begin, by its footer."""
    end = size - len(MAGIC) - 4
    (length,) = struct.unpack("<i", _read(raw, end, 4))
    footer = _table(_read(raw, end - length, _bounded(length)))
    for field in (2, 3):
        for place in footer.vector(field, 24):
            yield footer.number("<q", place)


def _messages(raw: Any, size: int) -> Iterator[int]:
    """Where the messages of a stream begin."""
    place = 0
    while place + 4 <= size and (found := _header(raw, place)) is not None:
        yield place
        table, body = found
        place = body + table.field_number(3, "<q", 0)
        if place < body:
            raise BadMessage("a body of less than nothing")


def _header(raw: Any, place: int) -> tuple[_Table, int] | None:
    """The message at a place, and where its body begins; None at the end of a stream."""
    (length,) = struct.unpack("<I", _read(raw, place, 4))
    start = place + 4
    if length == _CONTINUES:
        (length,) = struct.unpack("<I", _read(raw, start, 4))
        start += 4
    return (_table(_read(raw, start, _bounded(length))), start + length) if length else None


def _body(raw: Any, place: int) -> Iterator[Body]:
    found = _header(raw, place)
    if found is None:
        return
    message, start = found
    kind, batch = message.field_number(1, "<B", 0), message.table(2)
    if kind == _DICTIONARY and batch is not None:
        batch = batch.table(1)
    if kind not in (_DICTIONARY, _BATCH) or batch is None or batch.table(3) is None:
        return
    packed = unpacked = 0
    for at in batch.vector(2, 16):
        offset, length = batch.number("<q", at), batch.number("<q", at + 8)
        if length > 0:
            (told,) = struct.unpack("<q", _read(raw, start + offset, 8))
            packed, unpacked = packed + length, unpacked + (length if told < 0 else told)
    yield Body(packed, unpacked)


def _bounded(length: int) -> int:
    if not 0 <= length <= _MAX_TABLE_BYTES:
        raise BadMessage("a message of that length is none")
    return length


def _table(data: bytes) -> _Table:
    """The table that FlatBuffers bytes begin with."""
    return _Table(data, struct.unpack_from("<I", data, 0)[0])


class _Table:
    """A FlatBuffers table within its bytes. Raises `struct.error` where something in it points outside of them."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data = data
        self._place = place
        self._fields = place - self.number("<i", place)
        self._size = self.number("<H", self._fields)

    def number(self, kind: str, place: int) -> int:
        if place < 0:
            raise BadMessage("a message that points outside of itself")
        return int(struct.unpack_from(kind, self._data, place)[0])

    def _field(self, field: int) -> int | None:
        """Where a field stands; None where the table does not have it."""
        at = 4 + 2 * field
        offset = self.number("<H", self._fields + at) if at < self._size else 0
        return self._place + offset if offset else None

    def field_number(self, field: int, kind: str, absent: int) -> int:
        place = self._field(field)
        return absent if place is None else self.number(kind, place)

    def table(self, field: int) -> _Table | None:
        place = self._field(field)
        return None if place is None else _Table(self._data, place + self.number("<I", place))

    def vector(self, field: int, width: int) -> Iterator[int]:
        """Where the items of a vector of structures of `width` bytes begin."""
        place = self._field(field)
        if place is None:
            return
        start = place + self.number("<I", place)
        count = self.number("<I", start)
        if start + 4 + count * width > len(self._data):
            raise BadMessage("a message that points outside of itself")
        yield from range(start + 4, start + 4 + count * width, width)
