"""What a model says of labelled things - whole rows, or words of rows - beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from peftcli.models.heads import SEVERAL, SINGLE


@dataclass(frozen=True)
class Labelled:
    """Items in the order of their rows. `names`: of the labels; `problem`: how they are told (`models.heads`)."""

    names: tuple[str, ...]
    problem: str
    rows: np.ndarray
    """(items,) number of each item's row, ascending."""
    scores: np.ndarray
    """(items, labels) probabilities, or the values themselves where they are measured."""
    truth: np.ndarray
    """(items, labels) 1 where a label applies, or the true values."""
    num_rows: int

    @property
    def said(self) -> np.ndarray:
        """(items, labels) the answer as 0 and 1: the likeliest label, each label above one half, or the values."""
        if self.problem == SINGLE:
            chosen: np.ndarray = np.eye(len(self.names))[self.scores.argmax(axis=1)]
            return chosen
        return (self.scores > 0.5).astype(np.float64) if self.problem == SEVERAL else self.scores

    def by_row(self, numbers: np.ndarray) -> np.ndarray:
        """Sums numbers of items, (items, k), by row: (rows, k)."""
        found = np.zeros((self.num_rows, numbers.shape[1]))
        np.add.at(found, self.rows, numbers)
        return found


def joined(parts: Sequence[Labelled], num_rows: int) -> Labelled:
    """Several batches as one, in the order of their rows. `rows` of each part are already numbers in the whole."""
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows, kind="stable")
    scores, truth = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("scores", "truth"))
    return replace(parts[0], rows=rows[order], scores=scores, truth=truth, num_rows=num_rows)
