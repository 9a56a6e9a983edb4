"""Share of answers that are one JSON document (RFC 8259: no NaN, nothing before or after)."""

from __future__ import annotations

import json

from peftcli.evaluation.metric import AnswerPair, Metric, mean_over_answers


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def score(answer: AnswerPair) -> float:
    """1 for one JSON document, else 0."""
    try:
        json.loads(answer.prediction, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


METRIC = Metric(better="higher", answers=mean_over_answers(score), fraction=True)
