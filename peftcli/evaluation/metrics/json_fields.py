"""Share of the fields of JSON answers that hold what the reference holds, field by field however deep.

Of both documents together: a field that is missing, one too many and one with another value count alike; an answer that is
no JSON document has none right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from peftcli.evaluation.metric import AnswerPair, Metric


def fields_of(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Path and value of every leaf of a document; an empty object or list is one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    leaf = True
    for name, each in inner:
        leaf = False
        yield from fields_of(each, (*path, name))
    if leaf:
        yield path, value


def counts(answer: AnswerPair) -> tuple[float, float]:
    """Fields that agree, and fields of both documents together."""
    wanted, found = _read(answer.reference), _read(answer.prediction)
    right = sum(path in found and _same(found[path], value) for path, value in wanted.items())
    return float(right), float(len({*wanted, *found}))


def _read(text: str) -> dict[tuple[str | int, ...], Any]:
    try:
        return dict(fields_of(json.loads(text)))
    except (ValueError, RecursionError):
        return {}


def _same(one: Any, other: Any) -> bool:
    # to Python true is 1, to JSON it is not
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def rows(answers: Sequence[AnswerPair]) -> np.ndarray:
    """(rows, 2): what `counts` says of each answer."""
    return np.array([counts(answer) for answer in answers], dtype=np.float64).reshape(-1, 2)


def value(totals: np.ndarray) -> np.ndarray:
    """Fields that agree over all fields; 0 where no reference is JSON and no answer either."""
    found: np.ndarray = totals[..., 0] / np.maximum(totals[..., 1], 1.0)
    return found


METRIC = Metric(better="higher", answers=rows, value=value, fraction=True)
