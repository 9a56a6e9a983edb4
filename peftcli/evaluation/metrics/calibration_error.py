"""Expected calibration error (arXiv:1706.04599): how far confidence is from accuracy, in 15 bins of equal width."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.models.heads import SINGLE
from peftcli.tasks.labels.labelled import Labelled

BINS = 15


def rows(labelled: Labelled) -> np.ndarray:
    """(rows, 3 * BINS): of each bin how many, how many right, and their confidence."""
    confidence = labelled.scores.max(axis=1)
    right = (labelled.said * labelled.truth).sum(axis=1)
    chosen = np.eye(BINS)[np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)]
    parts = [chosen, chosen * right[:, None], chosen * confidence[:, None]]
    return labelled.by_row(np.concatenate(parts, axis=1))


def value(totals: np.ndarray) -> np.ndarray:
    """Mean over bins of |right - confidence|, each weighed by its rows; (...,) of (..., 3 * BINS)."""
    count, right, confidence = np.split(totals, 3, axis=-1)
    found: np.ndarray = np.abs(right - confidence).sum(axis=-1) / count.sum(axis=-1)
    return found


METRIC = Metric(better="lower", labels=rows, value=value, problems=(SINGLE,))
