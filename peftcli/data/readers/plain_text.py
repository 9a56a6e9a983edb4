"""Plain text: each line that is not blank is a document, as in `datasets`' own text loader."""

from __future__ import annotations

from collections.abc import Iterator

from peftcli.data.readers.base import Chunk, Reading
from peftcli.data.readers.lines import chunks_of_lines


def read(reading: Reading) -> Iterator[Chunk]:
    """Chunks of `{"text": line}`."""
    return chunks_of_lines(reading, lambda chunk, line, number: chunk.add({"text": line}, number))
