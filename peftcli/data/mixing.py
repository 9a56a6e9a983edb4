"""Which rows of which source make an epoch, in which order; the same seed gives the same answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftcli.data.order import permutation
from peftcli.errors import DataError

# different numbers, so that split and mix never draw from the same stream
_SPLIT_STREAM = 1_000_003
_MIX_STREAM = 1_000_033
_CALM = (1e-100, 1e100)
MAX_EPOCH_ROWS = 100_000_000
"""Of an epoch that is longer than the rows that there are; its order is held in memory."""


def split_off(
    counts: Sequence[int], wanted: float | int, seed: int, classes: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, validation rows) of each source, both ascending: a seeded draw over all rows together.

    `wanted`: a fraction, or a count of rows. `classes`: of each row, (rows of all sources,); the draw then keeps their
    proportions. `DataError` when nothing would be left to train on.
    """
    total = sum(counts)
    # at least one row: a fraction of a small file may round to none
    count = wanted if isinstance(wanted, int) else max(1, round(total * wanted))
    if count >= total:
        raise DataError(
            f"data.validation asks for {count:,} of {total:,} rows: nothing would be left to train on",
            fix="a smaller count or fraction, or a validation file",
        )
    chosen = np.zeros(total, dtype=bool)
    # over all rows together, so that each source gives about the same share of its rows
    order = permutation(total, seed, _SPLIT_STREAM)
    chosen[order[:count] if classes is None else _in_proportion(order, classes, count)] = True
    ends = np.cumsum(counts)
    parts = np.split(chosen, ends[:-1])
    return [(np.flatnonzero(~part), np.flatnonzero(part)) for part in parts]


def _in_proportion(order: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """The first rows of an order, so many of each class as its share; a class of few rows keeps one to train on."""
    sizes = np.bincount(classes)
    exact = sizes * (count / len(order))
    # one row of each class is kept back from the draw, to train on
    quota = np.minimum(np.floor(exact).astype(np.int64), np.maximum(sizes - 1, 0))
    for number in np.argsort(-(exact - quota), kind="stable"):
        if quota.sum() < count and quota[number] < sizes[number] - 1:
            quota[number] += 1
    within = np.empty(len(order), dtype=np.int64)
    for number in range(len(sizes)):
        rows = np.flatnonzero(classes[order] == number)
        # the place of each row among those of its class, in the order drawn
        within[rows] = np.arange(len(rows))
    found: np.ndarray = order[within < quota[classes[order]]]
    return found


def calm_weights(weights: Sequence[float]) -> np.ndarray:
    """The weights; where their sum, or what is divided by it, leaves the numbers that there are, relative to the largest."""
    found = np.array(weights, dtype=float)
    return found if _CALM[0] < sum(weights) < _CALM[1] else found / found.max()


def epoch_counts(available: Sequence[int], weights: Sequence[float | None], repeats: Sequence[int]) -> list[int]:
    """Rows of each source in an epoch. With weights an epoch is as many rows as the sources hold together, shared out
    by weight with the largest remainders rounded up; without them every row of every source. `DataError` for an epoch
    that repetition makes too long to put in order."""
    held = [count * repeat for count, repeat in zip(available, repeats, strict=True)]
    if sum(held) > max(MAX_EPOCH_ROWS, sum(available)):
        raise DataError(
            f"an epoch would have {sum(held):,} rows, by `repeat: {max(repeats)}`; {MAX_EPOCH_ROWS:,} are the most",
            fix="a smaller `repeat`; `training.epochs` and `training.max_steps` go over the rows again as well",
        )
    shares = [weight for weight in weights if weight is not None]
    if not shares:
        return held
    calm = calm_weights(shares)
    exact = calm * (sum(held) / sum(calm.tolist()))
    counts = np.floor(exact).astype(np.int64)
    # largest remainders: the counts add up to the epoch exactly; a stable sort, so that ties fall to the first source
    for number in np.argsort(-(exact - counts), kind="stable")[: sum(held) - int(counts.sum())]:
        counts[number] += 1
    return [int(count) for count in counts]


def epoch_rows(available: Sequence[int], counts: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(source, row within the source) of every row of an epoch, evenly interleaved.

    A source that gives more rows than it has gives all of them again; one that gives fewer gives a seeded choice.
    """
    sources, rows, positions = [], [], []
    for number, (held, count) in enumerate(zip(available, counts, strict=True)):
        if not count or not held:
            continue
        sources.append(np.full(count, number, dtype=np.int64))
        rows.append(_drawn(held, count, seed, number))
        # the middle of each of `count` equal stretches: sources interleave without a draw
        positions.append((np.arange(count) + 0.5) / count)
    if not sources:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    # stable: rows at equal places stand in the order of the sources
    order = np.argsort(np.concatenate(positions), kind="stable")
    return np.concatenate(sources)[order], np.concatenate(rows)[order]


def _drawn(held: int, count: int, seed: int, source: int) -> np.ndarray:
    whole, rest = divmod(count, held)
    parts = [np.arange(held)] * whole
    if rest:
        # sorted: the choice is at random, the order is the epoch's
        parts.append(np.sort(permutation(held, seed, _MIX_STREAM, source)[:rest]))
    return np.concatenate(parts)
