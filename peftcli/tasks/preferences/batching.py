"""Rows of compared answers as batches: each answer after its prompt is one sequence, all chosen ones first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from peftcli.data.encode.compared import ANSWERS, PROMPT
from peftcli.data.store import EncodedRow, Origin, RowIndex, TokenColumns, TokenStore
from peftcli.tasks.base import Batch, TrainingRow
from peftcli.tasks.losses.next_token import padded

OTHER, OTHER_CONTEXT = 3, 4
"""Parts of the answer to another prompt that a row may carry: its trained tokens, and those between them."""
ALTERNATIVES = (*ANSWERS, OTHER, OTHER_CONTEXT)
"""Parts of which a model reads one at a time; the last two belong together and are read no further than the others."""
NUMBERS = 3
"""What the model at the start says of a row: log-probability of the chosen, the rejected and the other answer."""


@dataclass(frozen=True)
class _Sequence:
    """One answer after its prompt; all (length,) but `row`."""

    ids: np.ndarray
    weights: np.ndarray
    """Of each token as a target."""
    row: int


def sequences(rows: Sequence[TrainingRow], part: int) -> list[_Sequence]:
    """The prompt and one answer of each row that has it."""
    found = []
    for number, row in enumerate(rows):
        parts = np.asarray(row.parts)
        chosen = (parts == PROMPT) | (parts == part)
        if (parts == part).any():
            found.append(_Sequence(np.asarray(row.input_ids)[chosen], np.asarray(row.weights)[chosen], number))
    return found


def _without_end(found: _Sequence, token: int) -> _Sequence:
    others = np.flatnonzero(found.ids != token)
    length = int(others[-1]) + 1 if others.size else 1
    return _Sequence(found.ids[:length], found.weights[:length], found.row)


def other_sequences(rows: Sequence[TrainingRow]) -> list[_Sequence]:
    """Each prompt with the answer to another one; none where rows carry none."""
    found = []
    for number, row in enumerate(rows):
        parts = np.asarray(row.parts)
        answer = parts >= OTHER
        if answer.any():
            chosen = (parts == PROMPT) | answer
            found.append(
                _Sequence(np.asarray(row.input_ids)[chosen], (parts[chosen] == OTHER).astype(np.float32), number)
            )
    return found


def _padded(found: Sequence[_Sequence], pad_token_id: int) -> Batch:
    return padded([(each.ids, each.weights) for each in found], pad_token_id=pad_token_id)


def collate(rows: Sequence[TrainingRow], *, pad_token_id: int, ends_with_pad: bool = True) -> Batch:
    """The sequences of rows as those of single texts are padded, and of each its `row` and `side` (0 chosen, 1 rejected).

    Of each row `present` (rows, 2), which answers it has, and `reference` (rows, 3) float64, what the model at the start
    says of it, NaN where that is not known. `other_...`: prompts with answers to others, where rows carry them.
    `ends_with_pad`: whether tokens at the end of an answer stay though padding is filled with them. transformers looks for
    the last token that is no padding by its id, so that a head on the last token is to be trained without them.
    """
    sides = [sequences(rows, part) for part in ANSWERS]
    if not ends_with_pad:
        sides = [[_without_end(each, pad_token_id) for each in side] for side in sides]
    found = [each for side in sides for each in side]
    batch = _padded(found, pad_token_id)
    batch["row"] = torch.tensor([each.row for each in found])
    batch["side"] = torch.tensor([number for number, side in enumerate(sides) for _ in side])
    batch["present"] = torch.tensor([[(np.asarray(row.parts) == part).any() for part in ANSWERS] for row in rows])
    known = np.full((len(rows), NUMBERS), np.nan)
    for number, row in enumerate(rows):
        if len(row.reference):
            known[number] = row.reference
    batch["reference"] = torch.from_numpy(known)
    others = other_sequences(rows)
    if not others:
        return batch
    return {**batch, **{f"other_{name}": tensor for name, tensor in _padded(others, pad_token_id).items()}}


def with_one_answer(row: TrainingRow) -> EncodedRow:
    """A row's prompt with its first answer."""
    parts = np.asarray(row.parts)
    answer = next(part for part in ANSWERS if (parts == part).any())
    kept = (parts == PROMPT) | (parts == answer)
    ids, weights = np.asarray(row.input_ids)[kept], np.asarray(row.weights)[kept]
    return EncodedRow(ids, weights, Origin(0, "", 0), parts[kept])


def with_others(store: TokenStore, longest: int) -> TokenStore:
    """Each row with the answer to another prompt after it, cut where both together are longer than `longest`.

    The other row is half a store away, so that neighbours with one prompt do not answer each other.
    """
    rows = [store[number] for number in range(len(store))]
    away = len(rows) // 2
    parts = [_with_other(row, rows[(number + away) % len(rows)], longest) for number, row in enumerate(rows)]
    length = np.array([len(tokens) for tokens, _, _ in parts], dtype=np.int64)
    tokens, weights, kinds = (np.concatenate(each) for each in zip(*parts, strict=True))
    columns = TokenColumns(tokens, weights, kinds, from_before=False)
    index = store.index
    moved = RowIndex(
        np.zeros(len(rows), dtype=np.int32),
        np.cumsum(length) - length,
        length,
        index.source,
        index.file,
        index.line,
        index.label,
    )
    return TokenStore([columns], moved, store.files, store.label_sets, store.reference)


def _with_other(row: TrainingRow, other: TrainingRow, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, weights and parts of a row that carries the answer of another."""
    parts = np.asarray(other.parts)
    answer = parts == next(part for part in ANSWERS if (parts == part).any())
    room = longest - int((np.asarray(row.parts) == PROMPT).sum())
    ids, counts = np.asarray(other.input_ids)[answer][:room], np.asarray(other.weights)[answer][:room] > 0
    kinds = np.where(counts, OTHER, OTHER_CONTEXT)
    return (
        np.concatenate([row.input_ids, ids]).astype(np.int32),
        np.concatenate([row.weights, np.zeros(len(ids))]).astype(np.float32),
        np.concatenate([row.parts, kinds]).astype(np.int32),
    )


def one_sided(store: TokenStore) -> np.ndarray:
    """Numbers of the rows that have one answer only."""
    lacking = [
        number for number in range(len(store)) if not all((store[number].parts == part).any() for part in ANSWERS)
    ]
    return np.array(lacking, dtype=np.int64)
