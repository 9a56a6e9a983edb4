"""Scores of rows by their vectors: kept batch by batch, worth something once all texts are there to be compared with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from peftcli.models.heads import MEASURED
from peftcli.tasks.base import Batch, RowScores
from peftcli.tasks.labels.labelled import Labelled
from peftcli.tasks.vectors.found import Vectors
from peftcli.tasks.vectors.losses import row_losses
from peftcli.tasks.vectors.pooling import unit

_CHUNK = 1024


def row_scores(vectors: Tensor, batch: Batch) -> RowScores:
    """The vectors of a batch's rows, and the cosines of those that have a score. `vectors`: (texts, width)."""
    rows = len(batch["score"])
    scores = batch["score"].cpu().numpy()
    row, place, key = (batch[name].cpu().numpy() for name in ("row", "place", "key"))
    found = unit(vectors.detach()).float().cpu().numpy()
    vectors_of = Vectors(found, row, place, key, ~np.isnan(scores)[row], rows)
    said = _cosines(found, row, place, scores)
    return RowScores(np.zeros(rows), np.ones(rows), np.zeros(rows), np.ones(rows), labelled=said, vectors=vectors_of)


def _cosines(vectors: np.ndarray, row: np.ndarray, place: np.ndarray, scores: np.ndarray) -> Labelled | None:
    chosen = np.flatnonzero(~np.isnan(scores))
    if not chosen.size:
        return None
    first, second = (vectors[(place == number) & np.isin(row, chosen)] for number in (0, 1))
    said = (first * second).sum(axis=1, keepdims=True).astype(np.float64)
    return Labelled(("cosine",), MEASURED, chosen, said, scores[chosen, None], len(scores))


def settled(scores: RowScores, temperature: float) -> RowScores:
    """The loss of each row against the texts of all rows, whatever was in its batch, and whether its match is nearest."""
    found = scores.vectors
    assert found is not None, "a task of vectors keeps them"
    truth = np.full(found.num_rows, np.nan)
    if scores.labelled is not None:
        truth[scores.labelled.rows] = scores.labelled.truth[:, 0]
    known = {name: torch.from_numpy(array) for name, array in (("row", found.rows), ("place", found.places))}
    known |= {"key": torch.from_numpy(found.keys), "score": torch.from_numpy(truth)}
    with torch.no_grad():
        losses = row_losses(torch.from_numpy(found.vectors).double(), known, temperature, chunk=_CHUNK).numpy()
    nearest = np.zeros(found.num_rows)
    for rows, ranks in found.ranks:
        nearest[rows] = float(ranks[0] == 1)
    return replace(scores, sums=losses, correct=nearest)
