"""Method sections that the contract suite runs: each method, and the variants that have code of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.adapters.surgery import attach
from peftcli.errors import AdapterError, RecipeError
from peftcli.testing.contract import Case

SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"type": "lora", "r": 4},
    "dora": {"type": "dora", "r": 4},
    "pissa": {"type": "pissa", "r": 4},
    "lora_ga": {"type": "lora_ga", "r": 2},
    "eva": {"type": "eva", "r": 4},
    "lora_fa": {"type": "lora_fa", "r": 4, "target_modules": "all-linear", "bias": "all"},
    "tokens": {"type": "lora", "r": 4, "trainable_token_indices": [5, 6, 7]},
    "adalora": {"type": "adalora", "init_r": 6, "target_r": 3},
    "vera": {"type": "vera", "r": 16},
    "ia3": {"type": "ia3"},
    "loha": {"type": "loha", "r": 4},
    "lokr": {"type": "lokr", "r": 2},
    "oft": {"type": "oft", "oft_block_size": 8},
    "bottleneck": {"type": "bottleneck"},
    "pfeiffer": {"type": "bottleneck", "placement": "pfeiffer", "scaling": 1.0},
    "houlsby": {"type": "bottleneck", "placement": "houlsby", "scaling": 1.0, "ln_before": True},
    "learned_scaling": {"type": "bottleneck", "scaling": "learned"},
    "bitfit": {"type": "bitfit"},
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 4, "prompt_tuning_init": "RANDOM"},
}
"""Label -> section. A label is the method's name where one section is enough."""

NOT_COVERED: frozenset[str] = frozenset()
"""Methods that the suite leaves out."""


def reason_against(section: Mapping[str, Any], family: str) -> str | None:
    """Why a method does not fit a family, as `attach` says it; None where it fits."""
    case = Case(section, family)
    try:
        attach(case.fresh(), dict(section), context=case.context())
    except (AdapterError, RecipeError) as error:
        return error.faults[0].message if len(error.faults) == 1 else error.message
    return None
