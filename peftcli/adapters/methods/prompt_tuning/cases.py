"""Sections that the contract suite runs for this method, by a label of their own; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CASES: Mapping[str, Mapping[str, Any]] = {
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 4, "prompt_tuning_init": "RANDOM"},
}
