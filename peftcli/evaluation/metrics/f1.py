"""Mean F1 of the words that answer and reference share, counted with repeats, as question answering scores it.

Words are runs of letters, digits and underscores in lower case, of any script; no word is left out.
"""

from __future__ import annotations

import re
from collections import Counter

from peftcli.evaluation.metric import AnswerPair, Metric, mean_over_answers

_WORD = re.compile(r"\w+")


def score(answer: AnswerPair) -> float:
    """2 x shared words / words of both; without words on one side, 1 where the other has none either."""
    predicted = Counter(_WORD.findall(answer.prediction.lower()))
    wanted = Counter(_WORD.findall(answer.reference.lower()))
    if not predicted or not wanted:
        return float(predicted == wanted)
    shared = sum((predicted & wanted).values())
    return 2 * shared / (predicted.total() + wanted.total())


METRIC = Metric(better="higher", answers=mean_over_answers(score), fraction=True)
