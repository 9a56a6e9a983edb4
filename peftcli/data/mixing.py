"""Which rows of which source make an epoch, in which order; the same seed gives the same answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftcli.data.order import permutation
from peftcli.errors import DataError

_SPLIT_STREAM = 1_000_003
_MIX_STREAM = 1_000_033


def split_off(counts: Sequence[int], wanted: float | int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, validation rows) of each source, both ascending: a seeded draw over all rows together.

    `wanted`: a fraction, or a count of rows. `DataError` when nothing would be left to train on.
    """
    total = sum(counts)
    count = wanted if isinstance(wanted, int) else max(1, round(total * wanted))
    if count >= total:
        raise DataError(
            f"data.validation asks for {count:,} of {total:,} rows: nothing would be left to train on",
            fix="a smaller count or fraction, or a validation file",
        )
    chosen = np.zeros(total, dtype=bool)
    chosen[permutation(total, seed, _SPLIT_STREAM)[:count]] = True
    ends = np.cumsum(counts)
    parts = np.split(chosen, ends[:-1])
    return [(np.flatnonzero(~part), np.flatnonzero(part)) for part in parts]


def epoch_counts(available: Sequence[int], weights: Sequence[float | None], repeats: Sequence[int]) -> list[int]:
    """Rows of each source in an epoch. With weights an epoch is as many rows as the sources hold together, shared out
    by weight with the largest remainders rounded up; without them every row of every source."""
    held = [count * repeat for count, repeat in zip(available, repeats, strict=True)]
    shares = [weight for weight in weights if weight is not None]
    if not shares:
        return held
    exact = np.array(shares) * (sum(held) / sum(shares))
    counts = np.floor(exact).astype(np.int64)
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
        positions.append((np.arange(count) + 0.5) / count)
    if not sources:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    order = np.argsort(np.concatenate(positions), kind="stable")
    return np.concatenate(sources)[order], np.concatenate(rows)[order]


def _drawn(held: int, count: int, seed: int, source: int) -> np.ndarray:
    whole, rest = divmod(count, held)
    parts = [np.arange(held)] * whole
    if rest:
        parts.append(np.sort(permutation(held, seed, _MIX_STREAM, source)[:rest]))
    return np.concatenate(parts)
