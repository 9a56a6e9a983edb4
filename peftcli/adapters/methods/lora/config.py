"""Fields of LoRA (arXiv:2106.09685), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from peftcli.adapters.config import Kind, MethodConfig

FILE_DEFAULTS: Mapping[str, Any] = {
    "r": 8,
    "target_modules": None,
    "exclude_modules": None,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "fan_in_fan_out": False,
    "bias": "none",
    "use_rslora": False,
    "modules_to_save": None,
    "init_lora_weights": True,
    "layers_to_transform": None,
    "layers_pattern": None,
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


class LoraConfig(MethodConfig):
    """Low-rank adaptation: y = W x + (lora_alpha / r) B A x."""

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "low-rank update B A of each linear layer"
    kind: ClassVar[Kind] = "layers"
    peft_type: ClassVar[str] = "LORA"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 5e-3
    short_names: ClassVar[Mapping[str, Mapping[str, Any]]] = {"rslora": {"use_rslora": True}}
    file_defaults: ClassVar[Mapping[str, Any]] = FILE_DEFAULTS
    refused_variants: ClassVar[Mapping[str, str]] = {
        "alora_invocation_tokens": "aLoRA",
        "use_bdlora": "BD-LoRA",
        "kasa_config": "KaSA",
        "velora_config": "VeLoRA",
        "arrow_config": "Arrow",
        "use_qalora": "QALoRA",
        "monteclora_config": "MonteCLoRA",
        "layer_replication": "layer replication",
    }

    r: Annotated[int, Field(ge=1)] = 16
    """Rank of the update."""
    lora_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32
    """Numerator of the scale lora_alpha / r."""
    target_modules: str | list[str] = "all-linear"
    """Layers to adapt: `all-linear`, a list of names or paths, or one regular expression for whole paths."""
    exclude_modules: str | list[str] | None = None
    """Layers to leave out again, by the same rules."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the update, while training."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which of the base's biases are trained too."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead (arXiv:2312.03732)."""
    lora_bias: bool = False
    """Give B a bias of its own."""
    modules_to_save: list[str] | None = None
    """Modules trained whole beside the update, e.g. a head; saved with the adapter."""
    init_lora_weights: bool | Literal["gaussian"] = True
    """Start: true (A Kaiming-uniform, B zero), gaussian (A normal with deviation 1/r, B zero), or false (both random)."""
    layers_to_transform: int | list[int] | None = None
    """Only these blocks, by number."""
    layers_pattern: str | list[str] | None = None
    """Name of the list of blocks, where the number cannot be told from the path."""
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Other ranks for some layers: end of a path, or regular expression -> r. The first match counts."""
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    """Other lora_alpha for some layers, likewise."""
