"""Sections that the contract suite runs for this method, by a label of their own; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CASES: Mapping[str, Mapping[str, Any]] = {
    "lora": {"type": "lora", "r": 4},
    "dora": {"type": "dora", "r": 4},
    "pissa": {"type": "pissa", "r": 4},
    "lora_ga": {"type": "lora_ga", "r": 2},
    "eva": {"type": "eva", "r": 4},
    "lora_fa": {"type": "lora_fa", "r": 4, "target_modules": "all-linear", "bias": "all"},
    "tokens": {"type": "lora", "r": 4, "trainable_token_indices": [5, 6, 7]},
}
