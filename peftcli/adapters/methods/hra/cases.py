"""Sections that the contract suite runs for this method, by a label of their own; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CASES: Mapping[str, Mapping[str, Any]] = {
    "hra": {"type": "hra", "r": 4},
    "hra_orthogonal": {"type": "hra", "r": 3, "apply_GS": True, "init_weights": False, "bias": "hra_only"},
}
