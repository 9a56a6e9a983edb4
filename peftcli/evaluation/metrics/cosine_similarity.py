"""Cosine of anchor and match, the mean over rows. High for all texts alike it says little: see recall beside it."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.tasks.vectors.found import Vectors


def rows(vectors: Vectors) -> np.ndarray:
    """(rows, 2): the cosine of each pair, and 1; zeros for rows that have a score instead of a match."""
    found = np.zeros((vectors.num_rows, 2))
    chosen, cosines = vectors.cosines
    found[chosen, 0], found[chosen, 1] = cosines, 1.0
    return found


METRIC = Metric(better="higher", vectors=rows, smooth=True)
