"""Share of answers that come to the reference's number, as GSM8K counts them: after `####`, else the last number.

Thousands' commas, currency and trailing zeros make no difference; an answer without a number is wrong.
"""

from __future__ import annotations

import re
from decimal import Decimal

from peftcli.evaluation.metric import AnswerPair, Metric, mean_over_answers

_MARK = "####"
_NUMBER = re.compile(r"(?:(?<![\d)])-)?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")


def number_of(text: str) -> Decimal | None:
    """The number that a text comes to: the first after its last mark, else the last of all; None where there is none."""
    _, mark, end = text.rpartition(_MARK)
    found = _NUMBER.findall(end if mark else text)
    return Decimal((found[0] if mark else found[-1]).replace(",", "")) if found else None


def score(answer: AnswerPair) -> float:
    """1 where both come to the same number, else 0."""
    wanted = number_of(answer.reference)
    return float(wanted is not None and number_of(answer.prediction) == wanted)


METRIC = Metric(better="higher", answers=mean_over_answers(score), fraction=True)
