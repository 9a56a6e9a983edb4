"""The gates of `expect`: a metric, a comparison, a bound that may be a share of the base's value."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from peftcli.errors import FieldFault

_GATE = re.compile(
    r"\s*(<=|>=|==|<|>)\s*([-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?)\s*(\*\s*base)?\s*"
    r"|\s*(<=|>=|==|<|>)\s*base\s*"
)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
}  # fmt: skip


@dataclass(frozen=True)
class Gate:
    """One comparison, such as `< 1.2` or, `of_base`, `< 0.8 * base`."""

    comparison: str
    bound: float
    of_base: bool = False

    def holds(self, value: float, base: float | None = None) -> bool:
        """Whether a measured value passes; one that is not finite, or a base that was not measured, never does."""
        bound = self.bound
        if self.of_base:
            if base is None or not math.isfinite(base):
                return False
            bound *= base
        # NaN compares as false with all but `!=`; infinity would pass `>`: neither is a value that anybody wished for
        return math.isfinite(value) and _COMPARE[self.comparison](value, bound)


def parse_gate(text: str) -> Gate:
    """`"< 1.2"` -> Gate. Raises `ValueError` that says what is wanted."""
    found = _GATE.fullmatch(text)
    if found is None:
        raise FieldFault(f"{text[:40]!r} is not a comparison", 'write one such as "< 1.2", ">= 0.9" or "< 0.8 * base"')
    if found[4] is not None:
        return Gate(found[4], 1.0, of_base=True)
    return Gate(found[1], float(found[2]), of_base=found[3] is not None)
