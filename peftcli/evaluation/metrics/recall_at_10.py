"""Share of an anchor's matches among the 10 nearest of all texts of the rows, the mean over different anchors."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.tasks.vectors.found import Vectors

NEAREST = 10


def rows(vectors: Vectors) -> np.ndarray:
    """(rows, 2): the share found of each anchor's matches, and 1, both over the rows that the anchor stands in."""
    return vectors.mean_over_anchors(lambda ranks: float((ranks <= NEAREST).mean()))


METRIC = Metric(better="higher", vectors=rows, fraction=True)
