"""`{"segments": [{"text": ..., "train": true}, ...]}`: pieces with a flag or a weight of their own each.

Named in a recipe (`format: segments`) also `prompt` and `completion`: two texts that no chat template wraps.
"""

from __future__ import annotations

from typing import Any

from peftcli.data.columns import Columns, filled_text, text_part
from peftcli.data.faults import RowFault
from peftcli.data.format import Format
from peftcli.data.readers.jsonl import json_kind
from peftcli.data.rows import Piece, PiecesRow

FLAGS = ("train", "label")


def recognise(row: Columns) -> str | None:
    """By a column `segments` that holds a list."""
    pieces = row.get("segments")
    return "a column `segments` that holds a list of pieces" if isinstance(pieces, list) else None


def parse(row: Columns) -> PiecesRow:
    """The pieces with their weights; `RowFault` where none is trained."""
    if "segments" not in row and "completion" in row:
        return PiecesRow((Piece(text_part(row, "prompt"), None), Piece(filled_text(row, "completion"), 1.0)))
    value = row.get("segments")
    if not isinstance(value, list) or not value:
        raise RowFault(f"'segments' is {json_kind(value)}, not a list of pieces" if value != [] else "no segments")
    pieces = tuple(_piece(entry, number) for number, entry in enumerate(value, 1))
    if not any(piece.weight for piece in pieces):
        raise RowFault("no segment is trained", 'mark one: {"text": ..., "train": true}')
    return PiecesRow(pieces)


def _piece(entry: Any, number: int) -> Piece:
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise RowFault(f"segment {number} has no text")
    weight = entry.get("weight")
    flags = [entry[name] for name in FLAGS if entry.get(name) is not None]
    if not all(isinstance(flag, bool) for flag in flags):
        raise RowFault(f"segment {number}: 'train' must be true or false")
    if weight is None:
        return Piece(entry["text"], float(any(flags)))
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        raise RowFault(f"segment {number}: 'weight' must be a finite number of at least 0")
    # any flag that says no wins over a weight
    return Piece(entry["text"], 0.0 if flags and not all(flags) else float(weight))


FORMAT = Format(
    "segments",
    (),
    ("segments", "prompt", "completion"),
    recognise,
    parse,
    rank=15,
    example='{"segments": [{"text": "Q: 2+2? A:", "train": false}, {"text": " 4", "train": true}]}',
    templated=False,
    foreign_names=("input_output",),
)
