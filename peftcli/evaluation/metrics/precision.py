"""Mean over labels of the share of rows said to have it that do; 0 for a label that is never said."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.counts import label_counts, mean_of_labels, parts, share
from peftcli.evaluation.metric import Metric


def value(totals: np.ndarray) -> np.ndarray:
    """Mean of right / said over labels, (...,) of counts by label."""
    right, said, _ = parts(totals)
    return mean_of_labels(share(right, said), totals)


METRIC = Metric(better="higher", labels=label_counts, value=value, fraction=True)
