"""Sections that the contract suite runs for this method, by a label of their own; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CASES: Mapping[str, Mapping[str, Any]] = {
    "p_tuning": {"type": "p_tuning", "num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "p_tuning_lstm": {
        "type": "p_tuning",
        "num_virtual_tokens": 4,
        "encoder_reparameterization_type": "LSTM",
        "encoder_hidden_size": 16,
    },
}
