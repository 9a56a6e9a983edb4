"""Share of pairs of which the model grants the chosen answer more reward: its win rate over the rejected ones.

A tie is half a win: the model at the start, which grants nothing, prefers neither.
"""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.tasks.preferences.scores import PAIRS, Preferences


def rows(compared: Preferences) -> np.ndarray:
    """(rows, 2): 1 where the chosen answer has more reward, 0.5 for a tie, else 0; and 1."""
    won = 0.5 + 0.5 * np.sign(compared.rewards[:, 0] - compared.rewards[:, 1])
    return np.stack([won, np.ones(len(won))], axis=1)


METRIC = Metric(better="higher", preferences=rows, problems=(PAIRS,), fraction=True)
