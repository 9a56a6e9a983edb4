"""JSON Lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from peftcli.data.faults import excerpt
from peftcli.data.readers.base import CHUNK_BYTES, CHUNK_ROWS, Chunk, Reading
from peftcli.data.readers.lines import read_lines


class NotFinite(ValueError):
    """NaN or Infinity, which JSON does not have."""


def _refuse_constant(name: str) -> NoReturn:
    raise NotFinite(f"{name} is not a JSON number")


# one decoder for all lines: `json.loads` with an option builds a new one at every call
decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def read(reading: Reading) -> Iterator[Chunk]:
    """Chunks of objects; blank lines are passed over, broken lines become faults."""
    chunk, size = Chunk(), 0
    for number, line in read_lines(reading):
        if not line or line.isspace():
            continue
        row = parse_line(line, number, reading)
        if row is None:
            continue
        chunk.add(row, number)
        size += len(line)
        if len(chunk.rows) == CHUNK_ROWS or size > CHUNK_BYTES:
            yield chunk
            chunk, size = Chunk(), 0
    if chunk.rows:
        yield chunk


def parse_line(line: str, number: int, reading: Reading) -> dict[str, Any] | None:
    """The object on a line, or None after logging what is wrong with it."""
    try:
        row = decode(line)
    except NotFinite as error:
        reading.faults.add(f"{error}: {excerpt(line)}", f"{reading.name}:{number}", "write null or a finite number")
        return None
    except json.JSONDecodeError as error:
        start = max(0, min(error.pos, len(line) - 1) - 30)
        reading.faults.add(
            f"not valid JSON ({error.msg}): {excerpt(line[start : start + 60])}",
            f"{reading.name}:{number}:{error.colno}",
            "mend or remove the line",
        )
        return None
    except (RecursionError, ValueError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else "a number of too many digits"
        reading.faults.add(f"not usable JSON ({reason}): {excerpt(line)}", f"{reading.name}:{number}")
        return None
    if isinstance(row, dict):
        return row
    reading.faults.add(
        f"a row must be a JSON object, not {json_kind(row)}: {excerpt(line)}",
        f"{reading.name}:{number}",
        'write {"text": ...} or the columns of another format',
    )
    return None


def json_kind(value: Any) -> str:
    """A value's type in JSON's own words."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
