"""Spearman's correlation of the ranks of values said and true, by scipy, the mean over outputs; 0 where one is constant."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.evaluation.metrics import pearson
from peftcli.models.heads import MEASURED


def value(numbers: np.ndarray) -> np.ndarray:
    """Pearson's correlation of ranks, ties by their mean, of (rows, 2 * outputs)."""
    from scipy.stats import rankdata

    return pearson.value(rankdata(numbers, axis=0))


METRIC = Metric(
    better="higher", labels=pearson.rows, value=value, problems=(MEASURED,), additive=False, packages=("scipy",)
)
