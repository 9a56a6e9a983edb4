"""Pearson's correlation of values said and true, the mean over outputs; 0 where either is constant."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.models.heads import MEASURED
from peftcli.tasks.labels.labelled import Labelled


def rows(labelled: Labelled) -> np.ndarray:
    """(rows, 2 * outputs): what was said, then the truth."""
    return np.concatenate([labelled.scores, labelled.truth], axis=1)


def value(numbers: np.ndarray) -> np.ndarray:
    """Covariance over the product of both deviations, the mean over outputs, of (rows, 2 * outputs)."""
    said, truth = np.split(numbers - numbers.mean(axis=0), 2, axis=1)
    spread = np.sqrt((said**2).sum(axis=0) * (truth**2).sum(axis=0))
    products = (said * truth).sum(axis=0)
    found: np.ndarray = np.divide(products, spread, out=np.zeros_like(spread), where=spread > 0).mean()
    return found


METRIC = Metric(better="higher", labels=rows, value=value, problems=(MEASURED,), additive=False, smooth=True)
