"""Reading exactly the bytes that were hashed: each block of a file is compared with its own hash when it is read.

A hash that is taken first and a reading that comes later are two readings, between which a file can become another one,
with the same size and time. The hash of the whole file is what locks and caches know; the hashes of its blocks, taken in
the same pass, hold whoever reads later to it, from any place and as often as a stream comes by.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.errors import DataError

# the hashes of a terabyte's blocks take less than 100 MB, and one block is little to read again
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class HashedFile:
    """SHA-256 of a file, and of each of its blocks (the last one may be short)."""

    sha256: str
    num_bytes: int
    blocks: tuple[bytes, ...]


def hash_file(path: Path) -> HashedFile:
    """Hashes a regular file in one pass. Raises `OSError`."""
    whole, blocks, size = hashlib.sha256(), [], 0
    with files.open_regular(path) as stream:
        while block := stream.read(BLOCK_BYTES):
            whole.update(block)
            blocks.append(hashlib.sha256(block).digest())
            size += len(block)
    return HashedFile(whole.hexdigest(), size, tuple(blocks))


class VerifiedFile(io.RawIOBase):
    """The bytes of a file as they were hashed. Raises `DataError` at the first block that is another one."""

    def __init__(self, path: Path, hashed: HashedFile, name: str) -> None:
        self._stream = files.open_regular(path)
        self._hashed = hashed
        self._name = name
        self._place = 0
        self._held: tuple[int, bytes] = (-1, b"")

    def readable(self) -> bool:
        """True: readers ask."""
        return True

    def seekable(self) -> bool:
        """True: columnar files are read from their end."""
        return True

    def tell(self) -> int:
        """The next byte that is read."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to another byte; the end is that of the hashed file."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._hashed.num_bytes}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer as far as the file goes: readers of columnar files take less for the end of the file."""
        view = memoryview(buffer).cast("B")
        count = 0
        # block by block: a buffer may span several
        while count < len(view) and (piece := self._piece(len(view) - count)):
            view[count : count + len(piece)] = piece
            count += len(piece)
        return count

    def _piece(self, most: int) -> bytes:
        number, start = divmod(self._place, BLOCK_BYTES)
        block = self._block(number) if number < len(self._hashed.blocks) else self._end()
        piece = block[start : start + most]
        self._place += len(piece)
        return piece

    def _block(self, number: int) -> bytes:
        # the last block is kept: small reads one after the other hash it once
        if self._held[0] != number:
            self._stream.seek(number * BLOCK_BYTES)
            block = self._stream.read(BLOCK_BYTES)
            if hashlib.sha256(block).digest() != self._hashed.blocks[number]:
                raise self._changed()
            self._held = number, block
        return self._held[1]

    def _end(self) -> bytes:
        """Nothing more, and nothing that was put after it."""
        self._stream.seek(self._hashed.num_bytes)
        if self._stream.read(1):
            raise self._changed()
        return b""

    def _changed(self) -> DataError:
        return DataError("the file changed while it was read", where=self._name, fix="run again")

    def close(self) -> None:
        """Closes the file itself."""
        self._stream.close()
        super().close()


def open_raw(path: Path, hashed: HashedFile | None, name: str) -> Any:
    """A file opened for reading in binary: held to its hashes where they were taken."""
    return files.open_regular(path) if hashed is None else VerifiedFile(path, hashed, name)
