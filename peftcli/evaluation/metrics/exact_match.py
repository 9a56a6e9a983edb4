"""Share of answers equal to their reference, white space at both ends aside."""

from __future__ import annotations

from peftcli.evaluation.metric import AnswerPair, Metric, mean_over_answers


def score(answer: AnswerPair) -> float:
    """1 where both are the same text, else 0."""
    return float(answer.prediction.strip() == answer.reference.strip())


METRIC = Metric(better="higher", answers=mean_over_answers(score), fraction=True)
