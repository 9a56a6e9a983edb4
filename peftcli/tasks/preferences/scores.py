"""What a model makes of compared answers, row by row: what metrics read. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PAIRS = "pairs"
"""Every row has a chosen and a rejected answer."""
VERDICTS = "verdicts"
"""Rows have one answer each, some of them marked as good and some as bad."""
ONE_SIDED = "answers of one kind"
"""All answers are marked as good, or all as bad."""


@dataclass(frozen=True)
class Preferences:
    """Arrays of (rows, 2), the chosen answer first; where a row has no such answer the numbers mean nothing."""

    present: np.ndarray
    """Which answers a row has, bool."""
    rewards: np.ndarray
    """What the model grants each answer."""
    log_probabilities: np.ndarray
    """Of each answer, in nats: of all its tokens, or a token where the loss is defined so; NaN where it has none."""
    answers: tuple[np.ndarray, ...] = ()
    """What the loss is computed from once all rows are known, as the task numbers it; each (rows, ...)."""

    @property
    def arrays(self) -> list[np.ndarray]:
        """All numbers, as `of_arrays` reads them."""
        return [self.present, self.rewards, self.log_probabilities, *self.answers]

    @staticmethod
    def of_arrays(arrays: Sequence[np.ndarray]) -> Preferences:
        """From the numbers that `arrays` gives."""
        present, rewards, log_probabilities, *answers = arrays
        return Preferences(present, rewards, log_probabilities, tuple(answers))

    @property
    def kind(self) -> str:
        """`PAIRS`, `VERDICTS` or `ONE_SIDED`."""
        if self.present.all():
            return PAIRS
        return VERDICTS if self.present.any(axis=0).all() else ONE_SIDED

    def mean_of(self, values: np.ndarray, side: int) -> np.ndarray:
        """Numbers (sum, count) of one side's answers of each row, (rows, 2)."""
        has = self.present[:, side]
        return np.stack([np.where(has, values[:, side], 0.0), has.astype(np.float64)], axis=1)


def joined(parts: Sequence[tuple[np.ndarray, Preferences]], num_rows: int) -> Preferences:
    """Several batches as one. Each comes with the numbers of its rows in the whole."""
    order = np.argsort(np.concatenate([rows for rows, _ in parts]), kind="stable")
    assert len(order) == num_rows, "every row is scored once"

    whole = [np.concatenate(each)[order] for each in zip(*(part.arrays for _, part in parts), strict=True)]
    return Preferences.of_arrays(whole)
