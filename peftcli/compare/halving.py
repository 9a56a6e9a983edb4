"""Successive halving: many settings for few steps, the better ones for more. Free of anything that trains.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization" (AISTATS 2016): after each
rung a third goes on with three times the steps, so that every rung costs the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

KEPT = 3
"""One candidate in so many goes on, with so many times the steps."""
LEAST_STEPS = 4
"""Of a trial: fewer say nothing of a rate."""
SPACING = 2.0
SPAN = 256.0
"""Of the highest rate to the lowest, at most: more candidates lie closer together."""


@dataclass(frozen=True)
class Rung:
    """So many candidates train for so many steps."""

    candidates: int
    steps: int


def rungs(candidates: int, steps: int) -> tuple[Rung, ...]:
    """The rungs below a whole run of `steps`, the last one a third of it.

    Three candidates or fewer need one rung, up to nine need two. Trials of too few steps to say anything are not made.
    """
    counts = [candidates]
    while counts[-1] > KEPT:
        counts.append(-(-counts[-1] // KEPT))
    planned = [Rung(count, _share(steps, KEPT ** (len(counts) - number))) for number, count in enumerate(counts)]
    # where two rungs are equally long, since a shorter one would say nothing, the earlier one decides at once
    return tuple(each for number, each in enumerate(planned) if number == 0 or each.steps > planned[number - 1].steps)


def _share(steps: int, parts: int) -> int:
    return min(steps, max(LEAST_STEPS, round(steps / parts)))


def rate_grid(centre: float, count: int) -> list[float]:
    """Rates around `centre`, the lowest first, each twice the one before (closer together beyond nine of them); of an even
    number the odd one lies above."""
    spacing = min(SPACING, SPAN ** (1 / max(count - 1, 1)))
    below = (count - 1) // 2
    return [float(f"{centre * spacing ** (number - below):.3g}") for number in range(count)]


def best_of(scores: Mapping[int, float | None], keep: int) -> list[int]:
    """The `keep` candidates of the lowest scores, in their own order; None is a trial that failed and never goes on."""
    known = [(score, number) for number, score in scores.items() if score is not None]
    return sorted(number for _, number in sorted(known)[:keep])
