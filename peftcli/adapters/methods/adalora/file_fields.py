"""Fields of the reference's AdaLoRA file that this method has no use for; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.adapters.target_config import TARGET_DEFAULTS

FILE_DEFAULTS: Mapping[str, Any] = {
    **TARGET_DEFAULTS,
    "r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "fan_in_fan_out": False,
    "bias": "none",
    "use_rslora": False,
    "init_lora_weights": True,
    "rank_pattern": None,
    "alpha_pattern": {},
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "trainable_token_indices": None,
    "loftq_config": {},
    "eva_config": None,
    "corda_config": None,
    "lora_ga_config": None,
    "use_dora": False,
    "velora_config": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "qalora_group_size": 16,
    "monteclora_config": None,
    "layer_replication": None,
    "lora_bias": False,
    "target_parameters": None,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
    "ensure_weight_tying": False,
    "target_r": 8,
    "init_r": 12,
    "tinit": 0,
    "tfinal": 0,
    "deltaT": 1,
    "beta1": 0.85,
    "beta2": 0.85,
    "orth_reg_weight": 0.5,
    "total_step": None,
}

REFUSED_VARIANTS: Mapping[str, str] = {
    "use_dora": "DoRA inside AdaLoRA",
    "trainable_token_indices": "AdaLoRA with trainable tokens",
    "alora_invocation_tokens": "aLoRA",
    "layer_replication": "layer replication",
    "megatron_config": "Megatron parallel layers",
    "target_parameters": "AdaLoRA on fused experts",
}

_UNREAD = "AdaLoRA does not read it"
IDLE_VARIANTS: Mapping[str, str] = dict.fromkeys(
    (
        "use_rslora", "alpha_pattern", "lora_bias", "use_qalora", "use_bdlora", "kasa_config", "arrow_config",
        "velora_config", "monteclora_config",
    ),
    _UNREAD,
)  # fmt: skip
"""Fields that the reference's AdaLoRA inherits from LoRA and does not read."""
