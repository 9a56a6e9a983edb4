"""Counts of labels from which precision, recall and F1 are made: they add up over rows, so intervals cost little.

numbers of a row: [right | said | true], each (labels,), summed over its words where it has several
"""

from __future__ import annotations

import numpy as np

from peftcli.tasks.labels.labelled import Labelled


def label_counts(labelled: Labelled) -> np.ndarray:
    """(rows, 3 * labels)"""
    said, truth = labelled.said, labelled.truth
    return labelled.by_row(np.concatenate([said * truth, said, truth], axis=1))


def parts(totals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(..., 3 * labels) -> right, said and true, each (..., labels)."""
    right, said, truth = np.split(totals, 3, axis=-1)
    return right, said, truth


def share(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """A quotient, 0 where nothing was counted."""
    found: np.ndarray = np.divide(over, under, out=np.zeros_like(over, dtype=np.float64), where=under > 0)
    return found


def f1(totals: np.ndarray) -> np.ndarray:
    """F1 of each label, (..., labels)."""
    right, said, truth = parts(totals)
    return share(2.0 * right, said + truth)


def mean_of_labels(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """The mean over labels that were said or are true, as scikit-learn takes it: (..., labels) -> (...)."""
    _, said, truth = parts(totals)
    occurs = (said + truth) > 0
    return share((values * occurs).sum(axis=-1), occurs.sum(axis=-1).astype(np.float64))
