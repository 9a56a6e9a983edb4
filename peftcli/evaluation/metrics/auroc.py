"""Area under the ROC curve, by scikit-learn: one label against the rest, the mean over labels."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.evaluation.ranking import mean_over_labels, scored_rows


def value(numbers: np.ndarray) -> np.ndarray:
    """Of labels and scores of all rows, as `by_label` lays them."""
    from sklearn.metrics import roc_auc_score

    return np.array(mean_over_labels(numbers, roc_auc_score, 0.5))


METRIC = Metric(better="higher", labels=scored_rows, value=value, additive=False, packages=("sklearn",), fraction=True)
