"""Share of labelled rows (or words) that the model labels right; where several labels apply, all of them."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.tasks.labels.labelled import Labelled


def rows(labelled: Labelled) -> np.ndarray:
    """(rows, 2): how many are right, of how many."""
    right = (labelled.said == labelled.truth).all(axis=1).astype(np.float64)
    return labelled.by_row(np.stack([right, np.ones(len(right))], axis=1))


METRIC = Metric(better="higher", labels=rows, fraction=True)
