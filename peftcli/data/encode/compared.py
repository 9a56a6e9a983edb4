"""Rows of answers that are compared or judged: the prompt once, then each answer, in one run of tokens.

    prompt | chosen | rejected        a pair
    prompt | chosen                   an answer that was marked as good; as bad: prompt | rejected

Each answer is encoded after its prompt as a row of a language model would be, by the chat template or piece by piece; what
both begin with, up to the first trained token of either, is the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from peftcli.data.encode.base import EncodedRows, Place, RowHit
from peftcli.data.rows import ChatRow, Message, Piece, PiecesRow, PreferenceRow, Row

PROMPT, CHOSEN, REJECTED = 0, 1, 2
"""Parts of such a row."""
ANSWERS = (CHOSEN, REJECTED)
"""Parts that are answers, the better one first."""
NO_TARGET = "the answer has no token that could be learned: no assistant's message, or an empty one"

EncodeRows = Callable[[Sequence[Row], Place], EncodedRows]
"""Encodes rows of language models."""


@dataclass(frozen=True)
class _Answer:
    """One answer after its prompt, encoded; all (length,)."""

    ids: np.ndarray
    weights: np.ndarray

    @property
    def first(self) -> int:
        """Place of the first trained token; the length where there is none."""
        trained = np.flatnonzero(self.weights)
        return int(trained[0]) if trained.size else len(self.ids)


def encode_compared(rows: Sequence[PreferenceRow], encode: EncodeRows, place: Place) -> EncodedRows:
    """The rows of which every answer can be encoded, in order; the others are refused with the reason."""
    asked = [(number, part, answer) for number, row in enumerate(rows) for part, answer in _answers(row)]
    whole = [_answered(rows[number].prompt, answer) for number, _, answer in asked]
    encoded = encode(whole, lambda position: place(asked[position][0]))
    out = EncodedRows()
    out.refused = {asked[position][0]: reason for position, reason in encoded.refused.items()}
    found = dict(zip(encoded.kept, _apart(encoded), strict=True))
    for number, group in groupby(range(len(asked)), key=lambda position: asked[position][0]):
        positions = list(group)
        if number not in out.refused:
            _append(out, number, {asked[position][1]: found[position] for position in positions})
    # once a row, though its prompt was encoded with either answer
    out.hits = list(dict.fromkeys(RowHit(hit.check, asked[hit.row][0], hit.message) for hit in encoded.hits))
    return out


def _answers(row: PreferenceRow) -> list[tuple[int, str | list[Message]]]:
    if row.rejected is not None:
        return [(CHOSEN, row.chosen), (REJECTED, row.rejected)]
    return [(CHOSEN if row.liked else REJECTED, row.chosen)]


def _answered(prompt: str | list[Message], answer: str | list[Message]) -> Row:
    if isinstance(prompt, str) and isinstance(answer, str):
        # as a prompt and its completion are: a chat under a template, else one text after the other
        plain = PiecesRow((Piece(prompt, None), Piece(answer, 1.0)))
        turns: list[Message] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return ChatRow(turns, [None, None], plain=plain)
    assert isinstance(prompt, list), "parts of a row are all texts or all messages"
    assert isinstance(answer, list), "parts of a row are all texts or all messages"
    # answers of the prompt are context: both sides have them
    return ChatRow([*prompt, *answer], [*([0.0] * len(prompt)), *([None] * len(answer))])


def _apart(encoded: EncodedRows) -> list[_Answer]:
    ends = np.cumsum(encoded.lengths)
    ids, weights = encoded.tokens(), encoded.weights()
    return [_Answer(*part) for part in zip(np.split(ids, ends[:-1]), np.split(weights, ends[:-1]), strict=True)]


def _append(out: EncodedRows, row: int, answers: dict[int, _Answer]) -> None:
    if any(answer.first == len(answer.ids) for answer in answers.values()):
        out.refused[row] = NO_TARGET, None
        return
    shared = _shared(list(answers.values()))
    start = len(out.ids)
    first = next(iter(answers.values()))
    out.run(first.ids[:shared].tolist(), 0.0)
    out.parts += [PROMPT] * shared
    for part, answer in answers.items():
        weights = answer.weights[shared:].copy()
        if not shared:
            weights[:1] = 0.0  # nothing stands before it that could predict it
        _runs(out, answer.ids[shared:], weights)
        out.parts += [part] * len(weights)
    out.end_row(row, start)


def _runs(out: EncodedRows, ids: np.ndarray, weights: np.ndarray) -> None:
    at = 0
    for weight, group in groupby(weights.tolist()):
        end = at + len(list(group))
        out.run(ids[at:end].tolist(), weight)
        at = end


def _shared(answers: Sequence[_Answer]) -> int:
    """Tokens that all begin with and none trains."""
    limit = min(answer.first for answer in answers)
    one, other = answers[0].ids[:limit], answers[-1].ids[:limit]
    apart = np.flatnonzero(one != other)
    return int(apart[0]) if apart.size else limit


def keep_answers(parts: np.ndarray, weights: np.ndarray, max_length: int, side: str) -> np.ndarray:
    """Positions that stay of a row that is too long: `left` cuts the prompt's beginning, `right` the answers' ends, and
    either takes of the other where that alone is not enough."""
    places = {part: np.flatnonzero(parts == part) for part in (PROMPT, *ANSWERS)}
    prompt, longest = len(places[PROMPT]), max(len(places[part]) for part in ANSWERS)
    if side == "left":
        longest = min(longest, max_length)
        prompt = min(prompt, max_length - longest)
    else:
        prompt = min(prompt, max_length)
        longest = min(longest, max_length - prompt)
    begin = len(places[PROMPT]) - prompt if side == "left" else 0
    stays = [places[PROMPT][begin : begin + prompt], *(places[part][:longest] for part in ANSWERS)]
    return np.sort(np.concatenate(stays))
