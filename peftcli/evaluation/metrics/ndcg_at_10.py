"""Normalised discounted cumulative gain at 10: matches count less the further down they stand; the mean over anchors."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.tasks.vectors.found import Vectors

NEAREST = 10
GAINS = 1 / np.log2(np.arange(2, NEAREST + 2))
"""What a match at each rank counts."""


def score(ranks: np.ndarray) -> float:
    """Of one anchor, over the gain of its matches standing first."""
    return float(GAINS[ranks[ranks <= NEAREST] - 1].sum() / GAINS[: len(ranks)].sum())


def rows(vectors: Vectors) -> np.ndarray:
    """(rows, 2): the gain of each anchor, and 1, both over the rows that the anchor stands in."""
    return vectors.mean_over_anchors(score)


METRIC = Metric(better="higher", vectors=rows, fraction=True)
