"""What a model's vectors are worth: where the match of each text stands among all texts of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_CHUNK = 1024
"""Anchors that are compared at once."""


@dataclass(frozen=True)
class Vectors:
    """Unit vectors of the texts of rows, with where they stand. All (texts,) but `vectors` (texts, width), float32."""

    vectors: np.ndarray
    rows: np.ndarray
    """Number of the row of each text."""
    places: np.ndarray
    """0: the anchor, 1: its match, then what is none."""
    keys: np.ndarray
    """Equal for equal texts."""
    scored: np.ndarray
    """Whether the row has a score, and is not looked for."""
    num_rows: int

    @cached_property
    def ranks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each different anchor: the rows that it stands in, and the ranks (from 1) of its matches among all texts.

        A text as near as a match stands before it, so that vectors that are all alike find nothing.
        """
        anchors = np.flatnonzero((self.places == 0) & ~self.scored)
        corpus = np.flatnonzero((self.places > 0) & ~self.scored)
        _, first = np.unique(self.keys[corpus], return_index=True)
        corpus = corpus[first]
        match_of = {int(self.rows[text]): int(self.keys[text]) for text in np.flatnonzero(self.places == 1)}
        found = []
        names, where = np.unique(self.keys[anchors], return_inverse=True)
        order = np.argsort(where, kind="stable")
        groups = np.split(anchors[order], np.cumsum(np.bincount(where))[:-1]) if len(names) else []
        position = {int(key): number for number, key in enumerate(self.keys[corpus])}
        for start in range(0, len(groups), _CHUNK):
            chunk = groups[start : start + _CHUNK]
            near = self.vectors[[group[0] for group in chunk]] @ self.vectors[corpus].T
            for group, cosines in zip(chunk, near, strict=True):
                matches = sorted({position[match_of[int(self.rows[text])]] for text in group})
                found.append((self.rows[group], _ranks(cosines, np.array(matches))))
        return found

    @property
    def cosines(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows whose texts match, and the cosine of each pair; both (pairs,)."""
        first, second = ((self.places == place) & ~self.scored for place in (0, 1))
        return self.rows[first], (self.vectors[first] * self.vectors[second]).sum(axis=1).astype(np.float64)

    def mean_over_anchors(self, score: Callable[[np.ndarray], float]) -> np.ndarray:
        """Additive numbers (rows, 2) whose ratio is the mean over different anchors of a score of their matches' ranks."""
        numbers = np.zeros((self.num_rows, 2))
        for rows, ranks in self.ranks:
            # an anchor of several rows counts once
            numbers[rows] = (score(ranks) / len(rows), 1 / len(rows))
        return numbers


def _ranks(cosines: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """The ranks of matches, ascending, all others as near standing before them."""
    others = np.sort(np.delete(cosines, matches))
    before = len(others) - np.searchsorted(others, np.sort(cosines[matches])[::-1], side="left")
    found: np.ndarray = before + np.arange(1, len(matches) + 1)
    return found


def joined(parts: Sequence[Vectors], num_rows: int) -> Vectors:
    """Several batches as one, in the order of their rows. `rows` of each part are already numbers in the whole."""
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows, kind="stable")
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])[order]
        for name in ("vectors", "rows", "places", "keys", "scored")
    }
    return Vectors(**arrays, num_rows=num_rows)
