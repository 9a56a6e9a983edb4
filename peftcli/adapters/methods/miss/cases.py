"""Sections that the contract suite runs for this method, by a label of their own; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CASES: Mapping[str, Mapping[str, Any]] = {
    "miss": {"type": "miss", "r": 4},
    # a rank that divides no width, columns that are shared; a start at random, and biases
    "miss_mini": {"type": "miss", "r": 5, "init_weights": "mini", "mini_r": 4},
    "miss_bat": {"type": "miss", "r": 4, "init_weights": "bat"},
    "miss_random": {"type": "miss", "r": 4, "init_weights": False, "bias": "MiSS_only"},
}
