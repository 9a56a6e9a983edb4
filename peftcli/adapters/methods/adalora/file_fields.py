"""Fields of the reference's AdaLoRA file: LoRA's, which it inherits, and its own; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.adapters.methods.lora.file_fields import FILE_DEFAULTS as LORA_DEFAULTS

FILE_DEFAULTS: Mapping[str, Any] = {
    **LORA_DEFAULTS,
    "rank_pattern": None,
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
"""Fields of the reference's configuration file, with the values that the reference gives them by default."""

REFUSED_VARIANTS: Mapping[str, str] = {
    "use_dora": "DoRA inside AdaLoRA",
    "trainable_token_indices": "AdaLoRA with trainable tokens",
    "alora_invocation_tokens": "aLoRA",
    "layer_replication": "layer replication",
    "megatron_config": "Megatron parallel layers",
    "target_parameters": "AdaLoRA on fused experts",
}
"""Field of the file -> the variant that it switches on and that is not here: loading would compute something else."""

_UNREAD = "AdaLoRA does not read it"
IDLE_VARIANTS: Mapping[str, str] = dict.fromkeys(
    (
        "use_rslora", "alpha_pattern", "lora_bias", "use_qalora", "use_bdlora", "kasa_config", "arrow_config",
        "velora_config", "monteclora_config",
    ),
    _UNREAD,
)  # fmt: skip
"""Fields that the reference's AdaLoRA inherits from LoRA and does not read."""
