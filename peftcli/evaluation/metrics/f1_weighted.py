"""Mean over labels of F1, each weighed by the number of rows (or words) that have it."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.counts import f1, label_counts, parts, share
from peftcli.evaluation.metric import Metric


def value(totals: np.ndarray) -> np.ndarray:
    """Mean of the F1 of labels by how often they are true, (...,) of counts by label."""
    _, _, truth = parts(totals)
    return share((f1(totals) * truth).sum(axis=-1), truth.sum(axis=-1))


METRIC = Metric(better="higher", labels=label_counts, value=value, fraction=True)
