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
    "use_rslora": "rank-stabilised AdaLoRA",
    "alpha_pattern": "AdaLoRA with alpha_pattern",
    "trainable_token_indices": "AdaLoRA with trainable tokens",
    "alora_invocation_tokens": "aLoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "arrow_config": "Arrow",
    "use_qalora": "QALoRA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "layer replication",
    "megatron_config": "Megatron parallel layers",
    "lora_bias": "AdaLoRA with a bias of B",
    "target_parameters": "AdaLoRA on fused experts",
}
