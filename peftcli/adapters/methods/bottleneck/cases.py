"""Sections that the contract suite runs for this method, by a label of their own; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CASES: Mapping[str, Mapping[str, Any]] = {
    "bottleneck": {"type": "bottleneck"},
    "pfeiffer": {"type": "pfeiffer", "reduction_factor": 8},
    "houlsby": {"type": "houlsby", "reduction_factor": 8, "ln_before": True},
    "learned_scaling": {"type": "bottleneck", "scaling": "learned", "ln_after": True},
}
