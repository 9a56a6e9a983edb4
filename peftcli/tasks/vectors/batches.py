"""Rows of texts that are compared as one batch: every text a line of its own, and where each row finds its texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from peftcli.data.parts import texts
from peftcli.tasks.base import Batch, TrainingRow


def collate(rows: Sequence[TrainingRow], *, pad_token_id: int) -> Batch:
    """`input_ids`, `attention_mask` (texts, longest), padded on the right; of each text its row (`row`), its place in the
    row (`place`) and a number that equal texts share (`key`), all (texts,); `score` (rows,), NaN where texts match."""
    every = [(number, place, ids) for number, row in enumerate(rows) for place, ids in enumerate(texts_of(row))]
    shape = (len(every), max(len(ids) for _, _, ids in every))
    ids = np.full(shape, pad_token_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    for line, (_, _, tokens) in enumerate(every):
        ids[line, : len(tokens)] = tokens
        mask[line, : len(tokens)] = 1
    scores = [float(row.labels[0]) if row.labels else float("nan") for row in rows]
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "row": torch.tensor([number for number, _, _ in every]),
        "place": torch.tensor([place for _, place, _ in every]),
        "key": torch.tensor([key_of(tokens) for _, _, tokens in every]),
        "score": torch.tensor(scores, dtype=torch.float64),
    }


def texts_of(row: TrainingRow) -> list[np.ndarray]:
    """The token ids of each text of a row."""
    numbers = texts(np.asarray(row.parts))
    return [np.asarray(row.input_ids)[numbers == text] for text in range(int(numbers.max()) + 1)]


def key_of(tokens: np.ndarray) -> int:
    """63 bits that equal texts share and others do not."""
    digest = hashlib.blake2b(np.asarray(tokens, dtype="<i4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def joined(parts: Sequence[Batch]) -> Batch:
    """What several batches know of their texts, without the tokens; rows are counted through."""
    starts = np.cumsum([0, *(len(part["score"]) for part in parts)])
    rows = [part["row"] + int(start) for part, start in zip(parts, starts, strict=False)]
    found = {name: torch.cat([part[name] for part in parts]) for name in ("place", "key", "score")}
    return {**found, "row": torch.cat(rows)}
