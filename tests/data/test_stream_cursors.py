"""A noted place in a stream with another digit in it is not believed."""

from __future__ import annotations

from pathlib import Path

from peftcli.data.stream import Cursor
from peftcli.data.stream_order import _noted, _read_cursors
from peftcli.data.stream_source import Position


def test_a_changed_digit_is_noticed(tmp_path: Path) -> None:
    path, start = tmp_path / "stream.jsonl", _cursor(0)
    lines = [_noted(_cursor(number)) for number in (1, 2, 3)]
    path.write_text("\n".join(lines) + "\n")
    assert _read_cursors(path, start) == [start, *map(_cursor, (1, 2, 3))]
    for place in (place for place, letter in enumerate(lines[1]) if letter.isdigit()):
        other = "3" if lines[1][place] != "3" else "4"
        path.write_text("\n".join([lines[0], lines[1][:place] + other + lines[1][place + 1 :], lines[2]]) + "\n")
        assert _read_cursors(path, start) == [start, _cursor(1)], place


def _cursor(number: int) -> Cursor:
    return Cursor(number, (Position(),), (Position(),), carried=number, batches=10 * number)
