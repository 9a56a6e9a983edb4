"""JSON Lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from peftcli.data.faults import excerpt
from peftcli.data.readers.base import Chunk, Reading
from peftcli.data.readers.lines import chunks_of_lines


class NotFinite(ValueError):
    """NaN or Infinity, which JSON does not have."""


def _refuse_constant(name: str) -> NoReturn:
    raise NotFinite(f"{name} is not a JSON number")


class Decoder:
    """One decoder for all lines of a file (`json.loads` with an option builds a new one at every call). `doubled`: keys
    that an object had twice, of which JSON readers keep the last; taken out by the check that reads them."""

    def __init__(self) -> None:
        self.doubled: list[str] = []
        self.decode = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=self._object).decode

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # equal keys leave fewer entries than pairs; only then is it worth looking for them
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            self.doubled.append(next(name for name in names if names.count(name) > 1))
        return found

    def take_doubled(self) -> list[str]:
        """The keys found twice since the last call."""
        found, self.doubled = self.doubled, []
        return found


def read(reading: Reading) -> Iterator[Chunk]:
    """Chunks of objects; blank lines are passed over, broken lines become faults."""
    decoder = Decoder()

    def add(chunk: Chunk, line: str, number: int) -> None:
        row = parse_line(line, number, reading, decoder)
        if row is None:
            return
        chunk.add(row, number)
        if decoder.doubled:
            # one key a line is told: the doctor counts lines
            chunk.doubled += [(number, name) for name in decoder.take_doubled()[:1]]

    return chunks_of_lines(reading, add)


def parse_line(line: str, number: int, reading: Reading, decoder: Decoder) -> dict[str, Any] | None:
    """The object on a line, or None after logging what is wrong with it."""
    try:
        row = decoder.decode(line)
    except NotFinite as error:
        reading.faults.add(f"{error}: {excerpt(line)}", f"{reading.name}:{number}", "write null or a finite number")
        return None
    except json.JSONDecodeError as error:
        # the parser may stop after the last character; thirty characters on both sides of the place
        start = max(0, min(error.pos, len(line) - 1) - 30)
        reading.faults.add(
            f"not valid JSON ({error.msg}): {excerpt(line[start : start + 60])}",
            f"{reading.name}:{number}:{error.colno}",
            _remedy(line),
        )
        return None
    except (RecursionError, ValueError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else "a number with too many digits"
        reading.faults.add(f"not usable JSON ({reason}): {excerpt(line)}", f"{reading.name}:{number}")
        return None
    if isinstance(row, dict):
        return row
    reading.faults.add(
        f"a row must be a JSON object, not {json_kind(row)}: {excerpt(line)}",
        f"{reading.name}:{number}",
        "a list of rows is a .json file: rename it"
        if isinstance(row, list) and row and all(isinstance(entry, dict) for entry in row)
        else 'write {"text": ...} or the columns of another format',
    )
    return None


def _remedy(line: str) -> str:
    """What to do about a line that is not JSON, by the two ways in which whole files come about that are not."""
    # a pretty-printed file read line by line fails on its first line, which is one bracket
    if line.strip() in ("{", "["):
        return "write one whole object per line; a list of objects over several lines is a .json file"
    # rows that were printed by Python instead of written as JSON
    if line.lstrip().startswith("{'"):
        return "write the rows with Python's `json.dumps`, which quotes as JSON does"
    return "correct or remove the line"


def json_in(text: str) -> Any:
    """The JSON that a text inside a row holds. `ValueError` where it is none, or too deeply nested to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("too deeply nested") from error


def json_kind(value: Any) -> str:
    """A value's type in JSON's own words."""
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return "binary data"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    # types that Arrow has and JSON has not (dates, decimals) go by their own names
    return names.get(type(value), type(value).__name__)
