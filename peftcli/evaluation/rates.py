"""Intervals and tests for shares of rows: exact where the bootstrap knows only what it has seen.

A bootstrap over 40 wrong answers draws 40 wrong answers, and calls 0 % certain. Wilson's score interval (1927) does not:
0 of 40 is 0 % to 8.8 %. Two models on the same rows are compared by the rows on which they differ (McNemar 1947).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from peftcli.evaluation.bootstrap import Interval

Z = 1.959963984540054
"""97.5 % quantile of the normal distribution: the central 95 %."""


def is_binary(numbers: np.ndarray) -> bool:
    """Whether each row counts as one and is either right or wrong: (rows, 2) of (0 or 1, 1)."""
    if numbers.ndim != 2 or numbers.shape[1] != 2 or not len(numbers):
        return False
    return bool(np.all(numbers[:, 1] == 1.0) and np.all((numbers[:, 0] == 0.0) | (numbers[:, 0] == 1.0)))


def wilson(share: float, rows: int) -> Interval:
    """95 % score interval of a share of independent rows (Wilson 1927, DOI 10.1080/01621459.1927.10502953)."""
    if rows < 1 or not math.isfinite(share):
        return (math.nan, math.nan)
    below = 1.0 + Z * Z / rows
    middle = (share + Z * Z / (2 * rows)) / below
    half = Z / below * math.sqrt(max(0.0, share * (1.0 - share)) / rows + Z * Z / (4 * rows * rows))
    # the ends are exact where all rows agree; rounding must not push them past the share itself
    return (min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def mcnemar(won: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: `won` rows only the second got right, `lost` only the first.

    Under no difference each such row falls either way with probability one half.
    """
    total = won + lost
    tail, ways = 0, 1
    for count in range(min(won, lost) + 1):
        tail += ways
        ways = ways * (total - count) // (count + 1)
    # integers to the last step: their ratio is rounded once, whatever their size
    return min(1.0, 2 * tail / (1 << total))


def paired_interval(won: int, lost: int, rows: int) -> Interval:
    """95 % score interval of the difference of two shares on the same rows (Tango 1998, Statistics in Medicine 17, 891).

    Of rows that all fall one way it is as wide as Wilson's: 0 of 120 that differ is -3.1 % to 3.1 %.
    """
    seen = (won - lost) / rows

    def away(delta: float) -> bool:
        spread = 2.0 * _lost_share(won, lost, rows, delta) + delta * (1.0 - delta)
        return (won - lost - rows * delta) ** 2 > Z * Z * rows * max(0.0, spread)

    return (_turn(away, seen, -1.0), _turn(away, seen, 1.0))


def _lost_share(won: int, lost: int, rows: int, delta: float) -> float:
    """The likeliest share of rows that are lost where shares differ by `delta`: the root of its quadratic equation."""
    b = (2 * rows - won + lost) * delta - won - lost
    c = -lost * delta * (1.0 - delta)
    return max(0.0, (math.sqrt(max(0.0, b * b - 8.0 * rows * c)) - b) / (4.0 * rows))


def _turn(away: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where a condition that does not hold `inside` begins to hold on the way to `outside`."""
    if not away(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if away(middle) else (middle, outside)
    return inside
