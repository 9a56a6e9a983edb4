"""Method sections that the contract suite runs: each method, and the variants that have code of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.adapters.surgery import attach
from peftcli.errors import AdapterError, RecipeError
from peftcli.testing.case import Case

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
    "pfeiffer": {"type": "pfeiffer", "reduction_factor": 8},
    "houlsby": {"type": "houlsby", "reduction_factor": 8, "ln_before": True},
    "learned_scaling": {"type": "bottleneck", "scaling": "learned", "ln_after": True},
    "compacter": {"type": "compacter"},
    "compacter_full": {"type": "compacter", "placement": "parallel", "phm_rank": None, "shared_phm_rule": False},
    "reft": {"type": "reft", "r": 4},
    "reft_positions": {"type": "reft", "r": 2, "prefix_positions": 3},
    "reft_ends": {"type": "reft", "r": 2, "prefix_positions": 2, "suffix_positions": 2},
    "bitfit": {"type": "bitfit"},
    "ln_tuning": {"type": "ln_tuning"},
    "freeze": {"type": "freeze", "num_layers": 1},
    "full": {"type": "full"},
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 4, "prompt_tuning_init": "RANDOM"},
    "p_tuning": {"type": "p_tuning", "num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "p_tuning_lstm": {
        "type": "p_tuning",
        "num_virtual_tokens": 4,
        "encoder_reparameterization_type": "LSTM",
        "encoder_hidden_size": 16,
    },
    "prefix_tuning": {"type": "prefix_tuning", "num_virtual_tokens": 4},
    "prefix_projection": {
        "type": "prefix_tuning",
        "num_virtual_tokens": 4,
        "prefix_projection": True,
        "encoder_hidden_size": 16,
    },
    "adaption_prompt": {"type": "adaption_prompt", "adapter_len": 4},
}
"""Label -> section. Under its own name a method's plain section, which the compatibility table is made from."""

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
