"""Mean over labels of F1, rare and frequent ones alike; labels that neither occur nor are said are left out."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.counts import f1, label_counts, mean_of_labels
from peftcli.evaluation.metric import Metric


def value(totals: np.ndarray) -> np.ndarray:
    """Mean of 2 * right / (said + truth) over labels, (...,) of counts by label."""
    return mean_of_labels(f1(totals), totals)


METRIC = Metric(better="higher", labels=label_counts, value=value, fraction=True)
