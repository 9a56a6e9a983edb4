"""JSON: a list of objects, one object with a single list of them (`{"data": [...]}`), or a single row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from peftcli.data.faults import excerpt
from peftcli.data.readers import jsonl
from peftcli.data.readers.base import CHUNK_ROWS, Chunk, Reading
from peftcli.data.readers.compressed import open_bytes
from peftcli.data.readers.lines import decoding_fault
from peftcli.errors import DataError

# a list has to be read whole, and takes several times its size in memory
MAX_FILE_BYTES = 2 << 30


def read(reading: Reading) -> Iterator[Chunk]:
    """Chunks of objects, numbered from 1 in the list. A file of JSON lines under this name is read as such."""
    text = _text(reading)
    first_line = text.lstrip().split("\n", 1)[0].strip()
    # more than one object, one a line: JSON lines under the name `.json`
    if first_line.startswith("{") and first_line.endswith("}") and text.strip() != first_line:
        yield from jsonl.read(reading)
        return
    decoder = jsonl.Decoder()
    rows = _rows(text, reading, decoder)
    # where in the list they stand is not known any more
    chunk = Chunk(doubled=[(1, name) for name in decoder.take_doubled()])
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            reading.faults.add(
                f"a row must be a JSON object, not {jsonl.json_kind(row)}: {excerpt(json.dumps(row))}",
                f"{reading.name}, row {number}",
            )
            continue
        chunk.add(row, number)
        if len(chunk.rows) == CHUNK_ROWS:
            yield chunk
            chunk = Chunk()
    if chunk.rows:
        yield chunk


def _text(reading: Reading) -> str:
    with open_bytes(reading) as stream:
        data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise DataError(
            "a JSON list of more than 2 GiB", where=reading.name, fix="write JSON Lines (.jsonl): one object per line"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message, where, fix = decoding_fault(data, error, f"{reading.name}:{line}")
        raise DataError(message, where=where, fix=fix) from error


def _rows(text: str, reading: Reading, decoder: jsonl.Decoder) -> list[Any]:
    if not text.strip():
        return []
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as error:
        # thirty characters on both sides of the place
        start = max(0, error.pos - 30)
        raise DataError(
            f"not valid JSON ({error.msg}): {excerpt(text[start : start + 60])}",
            where=f"{reading.name}:{error.lineno}:{error.colno}",
            fix="correct the file; one object per line is JSON Lines (.jsonl)",
        ) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, jsonl.NotFinite):
            reason = str(error)
        else:
            reason = "too deeply nested" if isinstance(error, RecursionError) else "a number with too many digits"
        raise DataError(f"not usable JSON: {reason}", where=reading.name, fix="correct the file") from error
    if isinstance(value, dict):
        # a wrapper such as {"version": 1, "data": [...]}: only where it is plain which list is meant
        lists = [entry for entry in value.values() if isinstance(entry, list)]
        value = [value] if _is_row(value) else lists[0] if len(lists) == 1 else value
    if isinstance(value, list):
        return value
    raise DataError(
        f"a JSON file must hold a list of objects, not {jsonl.json_kind(value)}",
        where=reading.name,
        fix="put the rows into a list, or write one object per line (.jsonl)",
    )


def _is_row(value: dict[str, Any]) -> bool:
    """Whether an object is a row itself: it has a list where a format has one, and that is no list of such rows."""
    # formats read JSON themselves
    from peftcli.data.format import load_format
    from peftcli.data.names import format_names

    parts = {part for name in format_names() for part in load_format(name).parts}
    named = [entry for name, entry in value.items() if name in parts and isinstance(entry, list)]
    inner = [part for entry in named for part in entry[:1] if isinstance(part, dict)]
    return bool(named) and not any(isinstance(part.get(name), list) for part in inner for name in parts)
