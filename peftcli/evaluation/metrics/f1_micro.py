"""F1 of all labels counted together; the accuracy, where exactly one label applies."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.counts import label_counts, parts, share
from peftcli.evaluation.metric import Metric


def value(totals: np.ndarray) -> np.ndarray:
    """2 * right / (said + truth) of all labels together, (...,) of counts by label."""
    right, said, truth = parts(totals)
    return share(2.0 * right.sum(axis=-1), (said + truth).sum(axis=-1))


METRIC = Metric(better="higher", labels=label_counts, value=value, fraction=True)
