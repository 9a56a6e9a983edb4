"""Sections that the contract suite runs for this method, by a label of their own; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CASES: Mapping[str, Mapping[str, Any]] = {
    "prefix_tuning": {"type": "prefix_tuning", "num_virtual_tokens": 4},
    "prefix_projection": {
        "type": "prefix_tuning",
        "num_virtual_tokens": 4,
        "prefix_projection": True,
        "encoder_hidden_size": 16,
    },
}
