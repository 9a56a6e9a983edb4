"""Which validation rows choose settings, and which ones score what was chosen: never the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peftcli.data.order import permutation
from peftcli.data.store import TokenStore
from peftcli.errors import DataError

_STREAM = 1_000_081
"""A stream of draws of its own."""
LEAST_ROWS = 8
TUNING_ROWS = (16, 256)
"""A third of the rows, at least and at most so many: a rate shows on few rows, a difference of methods needs the rest."""
Key = tuple[str, int]
"""Name and seed of a member."""


@dataclass(frozen=True)
class RowParts:
    """Numbers of the scored rows. `tuning`: of the first seed, by name; `final`: by name and seed, as many in each."""

    tuning: Mapping[str, np.ndarray]
    final: Mapping[Key, np.ndarray]


def origins_of(store: TokenStore | None, limit: int | None) -> tuple[str, ...]:
    """Where each row that is scored comes from, `file:line`."""
    count = len(store) if store is not None else 0
    found = (store.origin(row) for row in range(min(count, limit or count)) if store is not None)
    return tuple(f"{origin.file}:{origin.line}" for origin in found)


def part_rows(origins: Mapping[Key, Sequence[str]], first_seed: int, seed: int) -> RowParts:
    """`origins`: of the rows that each member scores. A row is known by where it comes from, so that a seed that holds
    other rows out is not scored on what tuning saw under the first one.

    Raises `DataError` where there are too few rows for two parts.
    """
    origins = _pieces(origins) if _few(origins) else origins
    seen = {name: _drawn(rows, seed) for (name, of_seed), rows in origins.items() if of_seed == first_seed}
    tuning = {name: _numbers(origins[name, first_seed], rows, among=True) for name, rows in seen.items()}
    # what one setting is tuned on no other one is scored on either: all are compared on the same rows
    every = frozenset().union(*seen.values())
    left = {key: _numbers(rows, every, among=False) for key, rows in origins.items()}
    least = min(map(len, left.values()))
    if least < LEAST_ROWS // 2:
        raise _too_few(least)
    return RowParts(tuning, {key: _thinned(rows, least, seed) for key, rows in left.items()})


def _few(origins: Mapping[Key, Sequence[str]]) -> bool:
    return any(len(set(rows)) < LEAST_ROWS for rows in origins.values())


def _pieces(origins: Mapping[Key, Sequence[str]]) -> Mapping[Key, Sequence[str]]:
    """Of a few long texts: each piece for itself, as far as all members have the same ones."""
    alike = len({tuple(rows) for rows in origins.values()}) == 1
    if not alike:
        return origins
    return {key: [f"{row}#{number}" for number, row in enumerate(rows)] for key, rows in origins.items()}


def _drawn(origins: Sequence[str], seed: int) -> frozenset[str]:
    """The origins that tuning sees: whole documents, so that no other piece of one is scored."""
    sizes = Counter(origins)
    documents = list(sizes)
    if len(documents) < LEAST_ROWS:
        raise _too_few(len(documents))
    low, high = TUNING_ROWS
    wanted = min(high, max(len(origins) // 3, min(low, len(origins) // 2)))
    found: set[str] = set()
    rows = 0
    for number in permutation(len(documents), seed, _STREAM):
        size = sizes[documents[number]]
        if found and rows + size > wanted:
            break
        found.add(documents[number])
        rows += size
    return frozenset(found)


def _numbers(origins: Sequence[str], chosen: frozenset[str], *, among: bool) -> np.ndarray:
    return np.flatnonzero([(origin in chosen) == among for origin in origins])


def _thinned(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    return rows if len(rows) == count else np.sort(rows[permutation(len(rows), seed, _STREAM)[:count]])


def _too_few(count: int) -> DataError:
    return DataError(
        f"--tune needs validation rows for itself beside those of the final score, and {count} are too few to part",
        fix=f"hold out at least {2 * LEAST_ROWS} rows (`data.validation`), or leave --tune out",
    )
