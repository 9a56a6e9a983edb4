"""Mean log-probability of rejected answers; of a token of theirs where the loss is defined so."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.tasks.preferences.scores import PAIRS, VERDICTS, Preferences


def rows(compared: Preferences) -> np.ndarray:
    """(rows, 2): log-probability of the rejected answer, and 1; zeros where the row has none."""
    return compared.mean_of(compared.log_probabilities, 1)


METRIC = Metric(better="lower", likelihoods=rows, problems=(PAIRS, VERDICTS), smooth=True, unit="nats")
