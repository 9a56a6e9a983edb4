"""Fields of the reference's LoRA file, with its defaults, and those that ask for what is not here; free of torch.

The reference's AdaLoRA has all of them too, as it inherits them.
"""

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
    "rank_pattern": {},
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
}
"""Fields of the reference's configuration file, with the values that the reference gives them by default."""

REFUSED_VARIANTS: Mapping[str, str] = {
    "alora_invocation_tokens": "aLoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow",
    "megatron_config": "Megatron parallel layers",
}
"""Field of the file -> the variant that it switches on and that is not here: loading would compute something else."""

IDLE_VARIANTS: Mapping[str, str] = {
    "velora_config": "VeLoRA compresses what the backward pass needs, and changes training only",
    "monteclora_config": "MonteCLoRA samples around the weights while training only",
    "use_qalora": "QALoRA changes layers that are quantized in groups only",
}
"""Field of the file -> why it changes nothing once the adapter is trained, so that it may be loaded all the same."""
