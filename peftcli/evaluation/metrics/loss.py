"""The task's loss of a target: for language models the mean negative log-likelihood of a token, weighted over tokens and
not over rows or batches."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Losses, Metric


def rows(losses: Losses) -> np.ndarray:
    """Of each row its summed loss and its weight, (rows, 2)."""
    return np.stack([losses.sums, losses.weights], axis=-1)


METRIC = Metric(better="lower", losses=rows, smooth=True, counts_loss=True)
