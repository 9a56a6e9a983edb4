"""What a model says of a row, for people and files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from peftcli.models.heads import MEASURED, SINGLE
from peftcli.tasks.labels.labelled import Labelled


@dataclass(frozen=True)
class Prediction:
    """`label`: a name, a list of names, a value or several; of words, one name each. `scores`: of each label, or None."""

    label: Any
    scores: Any
    text: str
    """For people."""


def whole_rows(labelled: Labelled) -> list[Prediction]:
    """Of rows that are labelled as a whole, in their order."""
    return [_row(labelled, scores) for scores in labelled.scores]


def _row(labelled: Labelled, scores: np.ndarray) -> Prediction:
    names = labelled.names
    if labelled.problem == MEASURED:
        values = [float(value) for value in scores]
        shown = ", ".join(f"{value:.4g}" for value in values)
        return Prediction(values[0] if len(values) == 1 else values, None, shown)
    each = {name: round(float(score), 6) for name, score in zip(names, scores, strict=True)}
    if labelled.problem == SINGLE:
        best = int(scores.argmax())
        return Prediction(names[best], each, f"{names[best]} ({scores[best]:.1%})")
    chosen = [name for name, score in zip(names, scores, strict=True) if score > 0.5]
    return Prediction(chosen, each, ", ".join(f"{name} ({each[name]:.1%})" for name in chosen) or "(none)")
