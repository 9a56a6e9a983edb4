"""Metrics of scores by their order: the mean over labels that some rows have and others lack."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from peftcli.tasks.labels.labelled import Labelled

LabelScore = Callable[[np.ndarray, np.ndarray], float]
"""Truth (0 or 1) and scores of one label, both (rows,), to its value."""


def scored_rows(labelled: Labelled) -> np.ndarray:
    """(rows, 2 * labels): scores, then the truth."""
    return np.concatenate([labelled.scores, labelled.truth], axis=1)


def mean_over_labels(numbers: np.ndarray, score: LabelScore, chance: float) -> float:
    """Where two labels exclude each other the second speaks for both. `chance`: where no label can be scored."""
    scores, truth = np.split(numbers, 2, axis=1)
    opposed = truth.shape[1] == 2 and bool((truth.sum(axis=1) == 1).all())
    labels = range(1, 2) if opposed else range(truth.shape[1])
    told = [label for label in labels if 0 < truth[:, label].sum() < len(truth)]
    if not told:
        return chance
    return float(np.mean([score(truth[:, label], scores[:, label]) for label in told]))
