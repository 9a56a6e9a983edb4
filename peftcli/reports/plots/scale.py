"""From values to places: ranges, round ticks, linear and logarithmic scales."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps `low`..`high` to 0..1. A logarithmic scale needs a positive `low`."""

    low: float
    high: float
    logarithmic: bool = False

    def fraction(self, value: float) -> float:
        """Where a value lies between `low` (0) and `high` (1); outside for what is beyond them."""
        if self.logarithmic:
            # zero and below have no logarithm: they are drawn below the picture
            value = max(value, self.low * 1e-3)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, wanted: int = 5) -> list[float]:
        """About so many round values within the range."""
        if self.logarithmic:
            return self._logarithmic_ticks(wanted)
        return round_ticks(self.low, self.high, wanted)

    def _logarithmic_ticks(self, wanted: int) -> list[float]:
        """1, 2 and 5 of each decade while there is room, else whole decades."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        inside = [
            [
                value
                for power in powers
                for factor in factors
                if self.low <= (value := factor * 10.0**power) <= self.high
            ]
            for factors in ((1, 2, 5), (1, 3), (1,))
        ]
        # half as many again as wanted still leaves the labels apart
        fine = next((ticks for ticks in inside if len(ticks) <= 1.5 * wanted), inside[-1])
        return fine[:: math.ceil(len(fine) / (1.5 * wanted)) or 1]


def round_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within `low`..`high`, about `wanted` of them."""
    rough = (high - low) / max(1, wanted)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    # 0.999 and 1e-9: a value that is round but for the last bit is round
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def cover(values: Sequence[float], *, pad: float = 0.06, robust: bool = False, zero: bool = False) -> Scale:
    """A linear scale over `values` with some air. `robust`: the rarest 2 % on top may leave the picture."""
    if not values:
        return Scale(0.0, 1.0)
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    # fewer than 50 values have no 2 % to leave out
    if robust and len(ordered) >= 50:
        high = ordered[int(0.98 * (len(ordered) - 1))]
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    spread = high - low
    # equal but for rounding: a line in the middle, not noise blown up to full height
    if spread <= 1e-12 * max(abs(low), abs(high), 1e-300):
        spread = max(abs(low), abs(high))
        if spread < sys.float_info.min:
            # zero, or so near it that half of it may round to nothing
            spread = 1.0
        return Scale(low - 0.5 * spread, high + 0.5 * spread)
    return Scale(low if zero and low == 0 else low - pad * spread, high + pad * spread)


def cover_log(values: Sequence[float]) -> Scale | None:
    """A logarithmic scale when the values are positive and span more than a factor of 50; else None."""
    # over less than a factor of 50 a linear scale shows the same, and is easier to read
    if not values or min(values) <= 0 or max(values) / min(values) < 50:
        return None
    return Scale(min(values) / 1.3, max(values) * 1.3, logarithmic=True)
