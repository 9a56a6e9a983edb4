"""Mean log-probability of chosen answers; of a token of theirs where the loss is defined so.

A margin may grow while both sides become less likely, so a fall is told.
"""

from __future__ import annotations

import numpy as np

from peftcli.evaluation.metric import Metric
from peftcli.tasks.preferences.scores import PAIRS, VERDICTS, Preferences


def rows(compared: Preferences) -> np.ndarray:
    """(rows, 2): log-probability of the chosen answer, and 1; zeros where the row has none."""
    return compared.mean_of(compared.log_probabilities, 0)


def fall(base: float, tuned: float) -> str | None:
    """A fall beyond rounding, in words."""
    if base - tuned <= 1e-4 * max(1.0, abs(base)):
        return None
    return (
        f"chosen answers have become less likely too (log-probability {base:.5g} to {tuned:.5g}): the margin comes from "
        "rejected ones falling further; a lower learning rate, a higher preference.beta or preference.sft_weight holds them"
    )


METRIC = Metric(better="higher", likelihoods=rows, problems=(PAIRS, VERDICTS), smooth=True, unit="nats", remark=fall)
