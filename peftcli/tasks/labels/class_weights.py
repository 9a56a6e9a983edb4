"""The weight of each label, from the recipe and the training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from peftcli.data.faults import listed
from peftcli.data.rows import Label
from peftcli.errors import RecipeError
from peftcli.models.heads import SEVERAL, LabelHead
from peftcli.tasks.labels.vocabulary import truth_of

Weights = Literal["balanced"] | Mapping[str, float] | None


def label_counts(rows: Sequence[tuple[Label, ...]], head: LabelHead) -> np.ndarray:
    """Rows that have each label, (labels,)."""
    counts: np.ndarray = np.stack([truth_of(labels, head) for labels in rows]).sum(axis=0, dtype=np.float64)
    return counts


def class_weights(asked: Weights, head: LabelHead, counts: np.ndarray, rows: int) -> np.ndarray | None:
    """(labels,) float32, None where all weigh alike.

    `balanced`: rows / (labels * rows of the label), as scikit-learn has it; where several labels apply, rows without the
    label over rows with it. A label that no row has weighs 1. Raises `RecipeError` for a name that is no label.
    """
    if asked is None:
        return None
    if asked == "balanced":
        present = np.maximum(counts, 1.0)
        weights = (rows - counts) / present if head.problem == SEVERAL else rows / (np.count_nonzero(counts) * present)
        return np.where(counts > 0, weights, 1.0).astype(np.float32)
    assert not isinstance(asked, str), "the recipe allows no other word"
    unknown = [name for name in asked if name not in head.numbers()]
    if unknown:
        raise RecipeError(
            f"classification.class_weights names `{unknown[0]}`, which is no label",
            where="classification.class_weights",
            fix=f"labels: {listed(head.names)}",
        )
    return np.array([asked.get(name, 1.0) for name in head.names], dtype=np.float32)
