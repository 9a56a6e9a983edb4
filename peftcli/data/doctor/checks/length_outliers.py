"""Rows far longer than the others: often a paste of a whole file, and they decide how much memory a batch takes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from peftcli.data.doctor.base import Check, Hit, Review

# of fewer rows the longest twentieth is a single row
MIN_ROWS = 20
# ten times the median and four times the longest twentieth: spread-out lengths pass, a pasted file does not
OVER_MEDIAN = 10
OVER_P95 = 4


def review(data: Review) -> Iterable[Hit]:
    """A hit for every row far longer than the others of its split."""
    for split in data.splits:
        # documents that are joined and cut may be of any length
        if split.joined or len(split.length) < MIN_ROWS:
            continue
        half, most = np.quantile(split.length, [0.5, 0.95])
        for row in np.flatnonzero(split.length > max(OVER_MEDIAN * half, OVER_P95 * most)).tolist():
            yield split.hit(row, f"{int(split.length[row]):,} tokens, where half of the rows have at most {half:,.0f}")


CHECK = Check("warn", "rows far longer than the others", review=review)
