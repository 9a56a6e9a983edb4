"""The gates of `expect`: a metric, a comparison, a bound."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

_GATE = re.compile(r"\s*(<=|>=|==|<|>)\s*([-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?)\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
}  # fmt: skip


@dataclass(frozen=True)
class Gate:
    """One comparison, such as `< 1.2`."""

    comparison: str
    bound: float

    def holds(self, value: float) -> bool:
        """Whether a measured value passes; one that is not finite never does."""
        return math.isfinite(value) and _COMPARE[self.comparison](value, self.bound)


def parse_gate(text: str) -> Gate:
    """`"< 1.2"` -> Gate. Raises `ValueError` that says what is wanted."""
    found = _GATE.fullmatch(text)
    if found is None:
        raise ValueError(f'{text[:40]!r} is no comparison; wanted one such as "< 1.2" or ">= 0.9"')
    return Gate(found[1], float(found[2]))
