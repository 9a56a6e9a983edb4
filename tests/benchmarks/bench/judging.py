"""What the figures say: whether runs did the same, and by how much one is faster. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

LOSS_TOLERANCE = 1e-4
"""Relative, in float32, at every step of the runs that are compared."""
MEASURES = {
    "tokens_per_second": "higher",
    "tokens_per_cpu_second": "higher",
    "peak_over_loaded_bytes": "lower",
    "first_step_seconds": "lower",
}
"""What is compared, and which direction is better; a ratio is always ours over theirs."""


def disagreement(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest relative difference of two loss traces; infinite where they cannot be compared."""
    if len(ours) != len(theirs) or not ours or not all(map(math.isfinite, [*ours, *theirs])):
        return math.inf
    return max(abs(one - other) / max(abs(one), 1e-12) for one, other in zip(ours, theirs, strict=True))


def faults(arms: Mapping[str, Mapping[str, Any]], ours: str = "peftcli") -> list[str]:
    """Why the arms of a float32 run do not do the same work; empty where they do.

    `arms`: name -> `losses`, `grad_norms` and `changed` (whether any trained tensor did), a step each.
    """
    found = []
    for name, figures in arms.items():
        norms = figures["grad_norms"]
        if len(norms) != len(figures["losses"]) or not all(math.isfinite(norm) and norm > 0 for norm in norms):
            found.append(f"{name}: a gradient is zero or not finite, or was not told at every step")
        if not figures.get("changed", True):
            found.append(f"{name}: no trained tensor has changed")
        apart = disagreement(arms[ours]["losses"], figures["losses"])
        if apart > LOSS_TOLERANCE:
            found.append(f"{name}: its losses differ from ours by up to {apart:.2g}, more than {LOSS_TOLERANCE:g}")
    return found


def ratios(rounds: Sequence[Mapping[str, Mapping[str, Any]]], arm: str, peer: str) -> dict[str, dict[str, float]]:
    """Ours over theirs, measure by measure: least, median and largest of the rounds.

    Each round's ratio is of two processes that ran one after the other, so what disturbs a machine for minutes
    disturbs both.
    """
    found = {}
    for measure in MEASURES:
        each = sorted(one[arm][measure] / one[peer][measure] for one in rounds)
        found[measure] = {"min": each[0], "median": statistics.median(each), "max": each[-1]}
    return found


def best(rounds: Sequence[Mapping[str, Mapping[str, Any]]], arm: str) -> dict[str, float]:
    """The least disturbed value of each measure."""
    chosen = {"higher": max, "lower": min}
    return {measure: chosen[better](one[arm][measure] for one in rounds) for measure, better in MEASURES.items()}
