"""F1 of whole spans of tags (B-, I-, also E- and S-), as CoNLL counts them: right with its borders and its kind.

A span begins at B- or S-, or at I- or E- of another kind than the word before; a tag without such a mark is a span for
each run of words that have it, and `O` is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from peftcli.evaluation.counts import share
from peftcli.evaluation.metric import Metric
from peftcli.models.heads import SINGLE
from peftcli.tasks.labels.labelled import Labelled

OUTSIDE = "O"


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(first word, one past the last, kind) of each span."""
    return set(_spans(tags))


def _spans(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    start, open_kind, ended = 0, "", True
    for place, tag in enumerate([*tags, OUTSIDE]):
        mark, kind = (tag[0], tag[2:]) if tag[1:2] == "-" and tag[0] in "BIES" else ("I", tag)
        outside = tag == OUTSIDE
        if open_kind and (outside or ended or mark in "BS" or kind != open_kind):
            yield start, place, open_kind
            open_kind = ""
        if not outside and not open_kind:
            start, open_kind = place, kind
        ended = mark in "ES"


def rows(labelled: Labelled) -> np.ndarray:
    """(rows, 3): spans that are right, said, and true."""
    found = np.zeros((labelled.num_rows, 3))
    said, truth = labelled.said.argmax(axis=1), labelled.truth.argmax(axis=1)
    bounds = np.searchsorted(labelled.rows, np.arange(labelled.num_rows + 1))
    for row in range(labelled.num_rows):
        words = slice(bounds[row], bounds[row + 1])
        one, other = (spans([labelled.names[tag] for tag in tags[words]]) for tags in (said, truth))
        found[row] = len(one & other), len(one), len(other)
    return found


def value(totals: np.ndarray) -> np.ndarray:
    """2 * right / (said + true), (...,) of (..., 3)."""
    return share(2.0 * totals[..., 0], totals[..., 1] + totals[..., 2])


METRIC = Metric(better="higher", labels=rows, value=value, problems=(SINGLE,), fraction=True)
