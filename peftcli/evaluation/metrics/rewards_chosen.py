"""Mean reward that the model grants chosen answers."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.tasks.preferences.scores import PAIRS, VERDICTS, Preferences


def rows(compared: Preferences) -> np.ndarray:
    """(rows, 2): reward of the chosen answer, and 1; zeros where the row has none."""
    return compared.mean_of(compared.rewards, 0)


METRIC = Metric(better="higher", preferences=rows, problems=(PAIRS, VERDICTS), smooth=True)
