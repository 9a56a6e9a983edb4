"""exp of the mean negative log-likelihood of a target token; infinite where float64 cannot hold it."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Losses, Metric, ratio


def rows(losses: Losses) -> np.ndarray:
    """Of each row its summed loss and its weight, (rows, 2)."""
    return np.stack([losses.sums, losses.weights], axis=-1)


def value(totals: np.ndarray) -> np.ndarray:
    """exp(loss / weight) of summed rows, (..., 2)."""
    with np.errstate(over="ignore"):
        result: np.ndarray = np.exp(ratio(totals))
    return result


METRIC = Metric(better="lower", losses=rows, value=value, smooth=True)
