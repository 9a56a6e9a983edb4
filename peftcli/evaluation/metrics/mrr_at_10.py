"""Mean reciprocal rank at 10: one over the rank of an anchor's nearest match, 0 beyond the tenth."""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.tasks.vectors.found import Vectors

NEAREST = 10


def rows(vectors: Vectors) -> np.ndarray:
    """(rows, 2): the reciprocal rank of each anchor, and 1, both over the rows that the anchor stands in."""
    return vectors.mean_over_anchors(lambda ranks: 1 / float(ranks[0]) if ranks[0] <= NEAREST else 0.0)


METRIC = Metric(better="higher", vectors=rows, fraction=True)
