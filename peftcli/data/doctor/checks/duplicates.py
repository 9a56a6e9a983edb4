"""Rows that are token for token the same as an earlier row of their split."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from peftcli.data.doctor.base import Check, Hit, Review


def review(data: Review) -> Iterable[Hit]:
    """A hit for every row whose tokens an earlier row of its split has."""
    for split in data.splits:
        # the first row of each key is the original
        _, first, which = np.unique(split.key, return_index=True, return_inverse=True)
        for row in np.flatnonzero(first[which] != np.arange(len(split.key))).tolist():
            yield split.hit(row, f"the same as {split.place(int(first[which[row]]))}")


CHECK = Check("warn", "rows that occur more than once", review=review)
