"""Mean squared error of values."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.models.heads import MEASURED
from peftcli.tasks.labels.labelled import Labelled


def rows(labelled: Labelled) -> np.ndarray:
    """(rows, 2): the mean (said - true)^2 of its outputs, and 1."""
    error = ((labelled.scores - labelled.truth) ** 2).mean(axis=1)
    return labelled.by_row(np.stack([error, np.ones(len(error))], axis=1))


METRIC = Metric(better="lower", labels=rows, problems=(MEASURED,), smooth=True)
