"""Where an answer departs from its reference: a redline of words."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

_WORD = re.compile(r"\w+|\s+|[^\w\s]")
# below that nearly all words are marked, and marks tell a reader nothing
_ALIKE_ENOUGH = 0.4
# comparing takes time that grows with the square of the words
_MAX_WORDS = 2000
_MAX_CHANGES = 200

PieceKind = Literal["same", "extra", "missing"]


@dataclass(frozen=True)
class DiffPiece:
    """`extra`: in the answer only; `missing`: in the reference only."""

    kind: PieceKind
    text: str


def redline(reference: str, answer: str) -> list[DiffPiece] | None:
    """Pieces whose `same` and `extra` ones give the answer, `same` and `missing` ones the reference.

    None when the two share too little (or are too long) for marks to help a reader.
    """
    wanted, found = _WORD.findall(reference), _WORD.findall(answer)
    if len(wanted) > _MAX_WORDS or len(found) > _MAX_WORDS:
        return None
    # `autojunk` would ignore frequent words in texts of more than 200, such as spaces
    matcher = difflib.SequenceMatcher(None, wanted, found, autojunk=False)
    if reference != answer and matcher.ratio() < _ALIKE_ENOUGH:
        return None
    changes = matcher.get_opcodes()
    if len(changes) > _MAX_CHANGES:
        return None
    pieces: list[DiffPiece] = []
    for operation, i1, i2, j1, j2 in changes:
        if operation == "equal":
            pieces.append(DiffPiece("same", "".join(found[j1:j2])))
            continue
        if i2 > i1:
            pieces.append(DiffPiece("missing", "".join(wanted[i1:i2])))
        if j2 > j1:
            pieces.append(DiffPiece("extra", "".join(found[j1:j2])))
    return pieces
