"""How much more reward the model grants chosen answers than rejected ones, on the mean."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric, ratio
from peftcli.tasks.preferences.scores import PAIRS, VERDICTS, Preferences


def rows(compared: Preferences) -> np.ndarray:
    """Sum and count of either side's rewards, (rows, 4)."""
    return np.concatenate([compared.mean_of(compared.rewards, side) for side in (0, 1)], axis=1)


def lead(totals: np.ndarray) -> np.ndarray:
    """Mean reward of the chosen less that of the rejected, (..., 4) -> (...); NaN where a side has no answer."""
    found: np.ndarray = ratio(totals[..., :2]) - ratio(totals[..., 2:])
    return found


METRIC = Metric(better="higher", preferences=rows, value=lead, problems=(PAIRS, VERDICTS), smooth=True)
