"""Intervals by the bootstrap over rows (Efron 1979): percentiles of the metric on resampled rows.

Rows are drawn by a generator of its own. The same seed and number of rows draw the same rows, so two models scored on
the same rows can be compared pairwise: the rows' difficulty then cancels out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000
FEW_RESAMPLES = 200
"""Of metrics that sort all rows each time."""
_WIDE = 16
SEED = 20250
COVERAGE = 0.95
_CHUNK_ELEMENTS = 1 << 22  # of drawn row numbers times numbers a row: 32 MiB

Value = Callable[[np.ndarray], np.ndarray]
Interval = tuple[float, float]
"""Lower and upper end."""


def resample(statistics: np.ndarray, value: Value, *, seed: int = SEED) -> np.ndarray:
    """Values of a metric on resampled rows, (RESAMPLES,). `statistics`: additive numbers of each row, (rows, k)."""
    rows, width = statistics.shape
    if width > _WIDE:
        return value(_drawn_counts(rows, seed) @ statistics)
    generator = np.random.Generator(np.random.Philox(seed))
    totals = np.empty((RESAMPLES, width))
    size = max(1, _CHUNK_ELEMENTS // (rows * width))
    for start in range(0, RESAMPLES, size):
        stop = min(start + size, RESAMPLES)
        drawn = generator.integers(0, rows, size=(stop - start, rows))
        totals[start:stop] = statistics[drawn].sum(axis=1)
    return value(totals)


def resample_rows(numbers: np.ndarray, of_all: Callable[[np.ndarray], float], *, seed: int = SEED) -> np.ndarray:
    """Values of a metric that is computed from all rows at once, on resampled rows, (FEW_RESAMPLES,)."""
    generator = np.random.Generator(np.random.Philox(seed))
    rows = len(numbers)
    return np.array([of_all(numbers[generator.integers(0, rows, size=rows)]) for _ in range(FEW_RESAMPLES)])


def _drawn_counts(rows: int, seed: int) -> np.ndarray:
    """How often each row is drawn, (RESAMPLES, rows): a product with it costs less than gathering rows of many numbers."""
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = (generator.integers(0, rows, size=rows) for _ in range(RESAMPLES))
    return np.stack([np.bincount(each, minlength=rows).astype(np.float64) for each in drawn])


def interval(values: np.ndarray) -> Interval:
    """The central 95 % of resampled values; values that are no number (a resample without targets) are left out, and
    infinite ones leave no interval."""
    numbers = values[~np.isnan(values)]
    if not numbers.size or np.isinf(numbers).any():
        return (float("nan"), float("nan"))
    tail = 50.0 * (1.0 - COVERAGE)
    low, high = np.percentile(numbers, [tail, 100.0 - tail], method="linear")
    return float(low), float(high)
