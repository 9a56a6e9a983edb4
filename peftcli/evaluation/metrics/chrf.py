"""Corpus chrF, 0 to 100 (Popović 2015, ACL W15-3049): character 1- to 6-grams without white space, beta 2.

Precision and recall are averaged over the orders of which both sides have n-grams, as sacrebleu does by default. It is our
own because a paired bootstrap needs the counts of each row, which that package keeps to itself; tests hold it to its score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from peftcli.evaluation.metric import AnswerPair, Metric

ORDERS = range(1, 7)
BETA_SQUARED = 4.0


def rows(answers: Sequence[AnswerPair]) -> np.ndarray:
    """(n-grams of the answer, of the reference, shared) for each order: (rows, 18)."""
    numbers = [
        number
        for answer in answers
        for order in ORDERS
        for number in _counts(_ngrams(answer.prediction, order), _ngrams(answer.reference, order))
    ]
    return np.array(numbers, dtype=np.float64).reshape(-1, 3 * len(ORDERS))


def value(totals: np.ndarray) -> np.ndarray:
    """chrF from summed counts (..., 3 x orders)."""
    by_order = totals.reshape(*totals.shape[:-1], len(ORDERS), 3)
    predicted, wanted, shared = by_order[..., 0], by_order[..., 1], by_order[..., 2]
    counted = ((predicted > 0) & (wanted > 0)).astype(np.float64)
    orders = np.maximum(counted.sum(axis=-1), 1.0)
    precision = (counted * shared / np.maximum(predicted, 1.0)).sum(axis=-1) / orders
    recall = (counted * shared / np.maximum(wanted, 1.0)).sum(axis=-1) / orders
    below = np.maximum(BETA_SQUARED * precision + recall, np.finfo(np.float64).tiny)
    result: np.ndarray = 100.0 * (1.0 + BETA_SQUARED) * precision * recall / below
    return result


def _ngrams(text: str, order: int) -> Counter[str]:
    letters = "".join(text.split())
    return Counter(letters[start : start + order] for start in range(len(letters) - order + 1))


def _counts(predicted: Counter[str], wanted: Counter[str]) -> tuple[int, int, int]:
    # an order that the reference is too short for says nothing about the answer
    return (predicted.total() if wanted else 0, wanted.total(), (predicted & wanted).total())


METRIC = Metric(better="higher", answers=rows, value=value)
