"""Mean reward that the model grants rejected answers."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.tasks.preferences.scores import PAIRS, VERDICTS, Preferences


def rows(compared: Preferences) -> np.ndarray:
    """(rows, 2): reward of the rejected answer, and 1; zeros where the row has none."""
    return compared.mean_of(compared.rewards, 1)


METRIC = Metric(better="lower", preferences=rows, problems=(PAIRS, VERDICTS), smooth=True)
