"""Spearman's correlation of the ranks of values said and true, the mean over outputs; 0 where one is constant."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.evaluation.metrics import pearson
from peftcli.models.heads import MEASURED


def value(numbers: np.ndarray) -> np.ndarray:
    """Pearson's correlation of ranks, ties by their mean, of (rows, 2 * outputs)."""
    return pearson.value(np.apply_along_axis(_ranks, 0, numbers))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Counted from 1; equal values share the mean of the ranks that they take."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return found


METRIC = Metric(better="higher", labels=pearson.rows, value=value, problems=(MEASURED,), additive=False)
