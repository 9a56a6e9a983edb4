"""Plain text: each line that is not blank is a document, as in `datasets`' own text loader."""

from __future__ import annotations

from collections.abc import Iterator

from peftcli.data.readers.base import CHUNK_BYTES, CHUNK_ROWS, Chunk, Reading
from peftcli.data.readers.lines import read_lines


def read(reading: Reading) -> Iterator[Chunk]:
    """Chunks of `{"text": line}`."""
    chunk, size = Chunk(), 0
    for number, line in read_lines(reading):
        if not line or line.isspace():
            continue
        chunk.add({"text": line}, number)
        size += len(line)
        if len(chunk.rows) == CHUNK_ROWS or size > CHUNK_BYTES:
            yield chunk
            chunk, size = Chunk(), 0
    if chunk.rows:
        yield chunk
