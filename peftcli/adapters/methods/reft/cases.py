"""Sections that the contract suite runs for this method, by a label of their own; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CASES: Mapping[str, Mapping[str, Any]] = {
    "reft": {"type": "reft", "r": 4},
    "reft_positions": {"type": "reft", "r": 2, "prefix_positions": 3},
    "reft_ends": {"type": "reft", "r": 2, "prefix_positions": 2, "suffix_positions": 2},
}
