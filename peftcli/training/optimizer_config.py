"""The recipe's `training.optimizer`: one section class for each optimizer, with its facts; free of torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from peftcli.errors import FieldFault
from peftcli.training.library_optimizers_config import (
    AdanConfig,
    AdEMAMixConfig,
    AdoptConfig,
    ApolloConfig,
    CAMEConfig,
    GaLoreConfig,
    LionConfig,
    ProdigyConfig,
    ScheduleFreeConfig,
)
from peftcli.training.optimizer_section import Betas, Fraction, OptimizerSection


class AdamWConfig(OptimizerSection):
    """AdamW of torch, fused where the device has it (arXiv:1711.05101)."""

    type: Literal["adamw"] = "adamw"
    """The optimizer's name."""
    betas: Betas = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the denominator."""


class SGDConfig(OptimizerSection):
    """Stochastic gradient descent."""

    type: Literal["sgd"] = "sgd"
    """The optimizer's name."""
    momentum: Fraction = 0.0
    """Momentum factor; 0 keeps no state."""
    nesterov: bool = False
    """Nesterov momentum; needs `momentum` above 0."""

    @property
    def state_size(self) -> float:
        return 1.0 if self.momentum else 0.0

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGDConfig:
        if self.nesterov and self.momentum == 0.0:
            raise FieldFault("nesterov needs a momentum above 0", "for example momentum: 0.9")
        return self


class AdafactorConfig(OptimizerSection):
    """Adafactor of transformers with the rate of the recipe (arXiv:1804.04235): factored second moments."""

    state_tensors: ClassVar[float] = 1.0

    type: Literal["adafactor"] = "adafactor"
    """The optimizer's name."""
    clip_threshold: float = Field(default=1.0, gt=0.0)
    """Root mean square of an update above which it is scaled down."""
    decay_rate: float = Field(default=-0.8, lt=0.0)
    """Exponent of the second moment's decay over steps."""
    scale_parameter: bool = False
    """Scale each rate by the tensor's root mean square; slow for tensors that start at zero, such as `lora_B`."""


class MuonConfig(OptimizerSection):
    """Muon of torch for matrices, AdamW for every other tensor; the rate keeps AdamW's scale (arXiv:2502.16982)."""

    # of matrices, which nearly all trained tensors are
    state_tensors: ClassVar[float] = 1.0

    type: Literal["muon"] = "muon"
    """The optimizer's name."""
    momentum: Fraction = 0.95
    """Momentum of the matrices."""
    nesterov: bool = True
    """Nesterov momentum of the matrices."""
    ns_steps: int = Field(default=5, ge=1, le=20)
    """Newton-Schulz iterations that orthogonalise an update."""
    betas: Betas = (0.9, 0.999)
    """AdamW's decay rates, for tensors that are no matrices."""
    eps: float = Field(default=1e-8, gt=0.0)
    """AdamW's epsilon, for tensors that are no matrices."""


class EightBitAdamWConfig(OptimizerSection):
    """AdamW of bitsandbytes: 8-bit states, or states paged to host memory."""

    package: ClassVar[str | None] = "bitsandbytes"
    state_tensors: ClassVar[float] = 0.5

    type: Literal["adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
    """The optimizer's name."""
    betas: Betas = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the denominator."""
    min_8bit_size: int = Field(default=4096, ge=1)
    """Tensors with fewer elements keep 32-bit states."""


OptimizerConfig = (
    AdamWConfig
    | SGDConfig
    | AdafactorConfig
    | LionConfig
    | MuonConfig
    | ScheduleFreeConfig
    | ProdigyConfig
    | AdoptConfig
    | CAMEConfig
    | AdEMAMixConfig
    | AdanConfig
    | GaLoreConfig
    | ApolloConfig
    | EightBitAdamWConfig
)
"""`training.optimizer`: the section of each optimizer, told apart by `type`."""
