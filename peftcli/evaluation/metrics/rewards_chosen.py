"""Mean reward that the model grants chosen answers."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.tasks.preferences.scores import PAIRS, VERDICTS, Preferences


def rows(compared: Preferences) -> np.ndarray:
    return compared.mean_of(compared.rewards, 0)


METRIC = Metric(better="higher", preferences=rows, problems=(PAIRS, VERDICTS), smooth=True)
