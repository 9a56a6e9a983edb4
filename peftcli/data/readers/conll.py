"""CoNLL: a word a line, its tag in the last column, sentences apart by blank lines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from peftcli.data.faults import excerpt
from peftcli.data.readers.base import CHUNK_ROWS, Chunk, Reading
from peftcli.data.readers.lines import read_lines

_DOCUMENT = "-DOCSTART-"
_WORDS, _TAGS = "tokens", "tags"


def read(reading: Reading) -> Iterator[Chunk]:
    """Chunks of `{"tokens": [...], "tags": [...]}`; the line of a row is that of its first word.

    Columns are parted by tabs or spaces. Lines that begin a document, and comments (`# `) between sentences, are passed
    over; a line of one column is a fault.
    """
    chunk = Chunk()
    words: list[str] = []
    tags: list[str] = []
    first, sound = 0, True
    for number, line in chain(read_lines(reading), [(0, "")]):
        fields = line.split("\t") if "\t" in line else line.split()
        passed = not words and (line.startswith("# ") or line.startswith(_DOCUMENT))
        if fields and not passed and line.strip():
            first = first or number
            if len(fields) < 2 or not fields[0].strip() or not fields[-1].strip():
                text = f"the line {excerpt(line)!r} has no word and tag"
                reading.faults.add(text, f"{reading.name}:{number}", "a word and its tag, parted by a tab or spaces")
                sound = False
            words.append(fields[0].strip())
            tags.append(fields[-1].strip())
        elif words:
            if sound and first > reading.after:
                chunk.add({_WORDS: words, _TAGS: tags}, first)
            words, tags, first, sound = [], [], 0, True
            if len(chunk.rows) == CHUNK_ROWS:
                yield chunk
                chunk = Chunk()
    if chunk.rows:
        yield chunk
