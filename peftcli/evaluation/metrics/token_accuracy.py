"""Share of target tokens that the model ranks first, each predicted from the true text before it."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Losses, Metric


def rows(losses: Losses) -> np.ndarray:
    """Of each row the targets ranked first and all of its targets, (rows, 2)."""
    return np.stack([losses.correct, losses.targets], axis=-1)


METRIC = Metric(better="higher", losses=rows, fraction=True)
