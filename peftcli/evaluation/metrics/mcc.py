"""Matthews correlation of labels said and true (Gorodkin 2004, R_K), -1 to 1; 0 where either is constant."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.counts import label_counts, parts
from peftcli.evaluation.metric import Metric
from peftcli.models.heads import SINGLE


def value(totals: np.ndarray) -> np.ndarray:
    """Covariance of said and true labels over the root of the product of their variances, (...,) of counts by label."""
    right, said, truth = parts(totals)
    rows = truth.sum(axis=-1)
    covariance = right.sum(axis=-1) * rows - (said * truth).sum(axis=-1)
    spread = (rows**2 - (said**2).sum(axis=-1)) * (rows**2 - (truth**2).sum(axis=-1))
    found: np.ndarray = np.divide(covariance, np.sqrt(spread), out=np.zeros_like(covariance), where=spread > 0)
    return found


METRIC = Metric(better="higher", labels=label_counts, value=value, problems=(SINGLE,))
