"""Rows that share nearly all runs of five tokens with another row of their split.

Candidates agree in a pair of places of their sketches (locality-sensitive hashing); each is then compared exactly with
the first and the previous row of its group. Runs that stand in many rows (a system prompt, a template) do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from peftcli.data.doctor.base import Check, Hit, Review, SplitRows
from peftcli.data.sketch import PARTS, SHINGLE

# below 16 tokens most rows share their runs by chance
MIN_TOKENS = 16
MIN_RUNS = 8
# the share of runs in common, by which two rows count as nearly the same
MIN_SHARED = 0.8
# of eight places: rows with 0.8 of their runs in common agree in 6.4 on average
MIN_AGREEING = 5
# exact comparisons for one split: some seconds, whatever the data are
MAX_COMPARED = 20_000
SAMPLE_ROWS = 256
COMMON_SHARE = 0.1

Runs = frozenset[bytes]


def review(data: Review) -> Iterable[Hit]:
    """A hit for every row that is nearly an earlier one of its split."""
    for split in data.splits:
        yield from _of_split(split)


def _of_split(split: SplitRows) -> Iterator[Hit]:
    rows = _distinct_rows(split)
    pairs = _pairs(split, rows)
    if not pairs:
        return
    common = _common_runs(split, rows)
    known: dict[int, Runs] = {}

    def runs(row: int) -> Runs:
        if row not in known:
            known[row] = runs_of(split.read(row)) - common
        return known[row]

    told: set[int] = set()
    for row, other in pairs[:MAX_COMPARED]:
        if row not in told and _alike(runs(row), runs(other)):
            told.add(row)
            yield split.hit(row, f"nearly the same as {split.place(other)}")


def _distinct_rows(split: SplitRows) -> np.ndarray:
    """Rows long enough to compare, one of each set of equal ones (another check reports those)."""
    _, first = np.unique(split.key, return_index=True)
    rows = np.sort(first)
    return rows[split.length[rows] >= MIN_TOKENS]


def _pairs(split: SplitRows, rows: np.ndarray) -> list[tuple[int, int]]:
    """(later row, earlier row) of pairs worth comparing, in the order of rows, each once."""
    sketches = split.sketch[rows]
    found = np.concatenate([_banded(sketches[:, part : part + 2]) for part in range(0, PARTS, 2)])
    agreeing = (sketches[found[:, 0]] == sketches[found[:, 1]]).sum(axis=1) >= MIN_AGREEING
    pairs = np.unique(rows[found[agreeing]], axis=0)
    return [(int(one), int(other)) for one, other in pairs]


def _banded(band: np.ndarray) -> np.ndarray:
    """(pairs, 2) positions of rows with equal bands: each with the first and with the previous one of its group."""
    # two numbers of 32 bits as one of 64, which sorts at once
    joined = (band[:, 0].astype(np.uint64) << np.uint64(32)) | band[:, 1]
    order = np.argsort(joined, kind="stable")
    # where a new group begins; the first row of a group stands for it
    new = np.r_[True, joined[order][1:] != joined[order][:-1]]
    first = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    later = np.flatnonzero(~new)
    pairs = [np.stack([order[later], other], axis=1) for other in (first[later], order[later - 1])]
    return np.concatenate(pairs)


def runs_of(tokens: np.ndarray) -> Runs:
    """Every run of `SHINGLE` tokens of a row."""
    # rows of four bytes a token: runs of tokens are slices of bytes, which hash fast
    data, width = tokens.astype("<i4").tobytes(), tokens.itemsize
    return frozenset(data[at * width : (at + SHINGLE) * width] for at in range(len(tokens) - SHINGLE + 1))


def _common_runs(split: SplitRows, rows: np.ndarray) -> Runs:
    """Runs in more than a tenth of a sample of rows."""
    # of a few rows every run is common
    if len(rows) < 20:
        return frozenset()
    counts: dict[bytes, int] = {}
    # spread evenly over the split: the first rows of a file are often of one kind
    sample = rows[np.linspace(0, len(rows) - 1, min(SAMPLE_ROWS, len(rows))).astype(np.int64)]
    for row in sample.tolist():
        for run in runs_of(split.read(row)):
            counts[run] = counts.get(run, 0) + 1
    return frozenset(run for run, count in counts.items() if count > COMMON_SHARE * len(sample))


def _alike(one: Runs, other: Runs) -> bool:
    if min(len(one), len(other)) < MIN_RUNS:
        return False
    shared = len(one & other)
    return shared >= MIN_SHARED * (len(one) + len(other) - shared)


CHECK = Check("warn", "rows that are nearly the same as another", review=review)
