"""Mean over labels of the share of rows that have it and are said to; 0 for a label that no row has."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.counts import label_counts, mean_of_labels, parts, share
from peftcli.evaluation.metric import Metric


def value(totals: np.ndarray) -> np.ndarray:
    """Mean of right / truth over labels, (...,) of counts by label."""
    right, _, truth = parts(totals)
    return mean_of_labels(share(right, truth), totals)


METRIC = Metric(better="higher", labels=label_counts, value=value, fraction=True)
