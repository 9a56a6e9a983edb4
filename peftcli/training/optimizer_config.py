"""The recipe's `training.optimizer`: one section class for each optimizer, with its facts; free of torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from peftcli.errors import FieldFault

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Betas = Annotated[tuple[Fraction, Fraction], Field(strict=False)]
ThreeBetas = Annotated[tuple[Fraction, Fraction, Fraction], Field(strict=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class _Optimizer(_Section):
    package: ClassVar[str | None] = None
    """Import name of the package that it comes from; None for torch and what peftcli always has."""
    state_tensors: ClassVar[float] = 2.0
    """`state_size`, where no field changes it."""
    rate_factor: ClassVar[float] = 1.0
    """What the method's own rate, found with AdamW, is multiplied by for `learning_rate: auto`."""
    still_steps: ClassVar[int] = 0
    """First steps that only prepare the state and move nothing."""
    own_rate: ClassVar[float | None] = None
    """The rate for `learning_rate: auto` of an optimizer that finds its own step size."""

    @property
    def state_size(self) -> float:
        """How many times the trained tensors its state takes, in float32."""
        return self.state_tensors


class AdamWConfig(_Optimizer):
    """AdamW of torch, fused where the device has it (arXiv:1711.05101)."""

    type: Literal["adamw"] = "adamw"
    """The optimizer's name."""
    betas: Betas = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the denominator."""


class SGDConfig(_Optimizer):
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


class AdafactorConfig(_Optimizer):
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


class MuonConfig(_Optimizer):
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


class EightBitAdamWConfig(_Optimizer):
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


class LibraryConfig(_Optimizer):
    """An optimizer of the package `pytorch-optimizer`: its fields are that class's own arguments."""

    package: ClassVar[str | None] = "pytorch_optimizer"
    class_name: ClassVar[str]
    """The class in the package."""
    settings: ClassVar[dict[str, bool]] = {}
    """Arguments that a recipe does not choose: weight decay is decoupled, whatever the class does by itself."""
    one_rate: ClassVar[bool] = False
    """Whether the class uses the first group's rate for all of them, whatever theirs are."""
    group_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that the class reads from its parameter groups."""

    type: str


class LionConfig(LibraryConfig):
    """Lion (arXiv:2302.06675): the sign of an interpolated momentum; use a rate 3 to 10 times below AdamW's."""

    class_name: ClassVar[str] = "Lion"
    state_tensors: ClassVar[float] = 1.0
    rate_factor: ClassVar[float] = 0.2

    type: Literal["lion"] = "lion"
    """The optimizer's name."""
    betas: Betas = (0.9, 0.99)
    """Interpolation of the update, and decay of the momentum."""


class ScheduleFreeConfig(LibraryConfig):
    """Schedule-free AdamW (arXiv:2405.15682): averages in place of a schedule; needs `scheduler: constant`."""

    class_name: ClassVar[str] = "ScheduleFreeAdamW"

    type: Literal["schedule_free"] = "schedule_free"
    """The optimizer's name."""
    betas: Annotated[tuple[Annotated[float, Field(gt=0.0, lt=1.0)], Fraction], Field(strict=False)] = (0.9, 0.999)
    """Interpolation between average and iterate, and decay of the second moment."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the denominator."""


class ProdigyConfig(LibraryConfig):
    """Prodigy (arXiv:2306.06101): estimates its step size; the recipe's rate multiplies it, 1 as a rule."""

    class_name: ClassVar[str] = "Prodigy"
    one_rate: ClassVar[bool] = True
    state_tensors: ClassVar[float] = 4.0
    own_rate: ClassVar[float | None] = 1.0

    type: Literal["prodigy"] = "prodigy"
    """The optimizer's name."""
    betas: Betas = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    d0: float = Field(default=1e-6, gt=0.0)
    """The first estimate of the distance to the solution."""
    d_coef: float = Field(default=1.0, gt=0.0)
    """Multiplies the estimate."""
    bias_correction: bool = False
    """Adam's correction of the first steps."""
    safeguard_warmup: bool = True
    """Leaves the rate out of the estimate, so that a warm-up does not hold it down."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the denominator."""


class AdoptConfig(LibraryConfig):
    """ADOPT (arXiv:2411.02853): Adam that converges with any second decay rate."""

    class_name: ClassVar[str] = "ADOPT"
    still_steps: ClassVar[int] = 1
    settings: ClassVar[dict[str, bool]] = {"weight_decouple": True}

    type: Literal["adopt"] = "adopt"
    """The optimizer's name."""
    betas: Betas = (0.9, 0.9999)
    """Decay rates of the first and second moment."""
    eps: float = Field(default=1e-6, gt=0.0)
    """The least denominator."""


class CAMEConfig(LibraryConfig):
    """CAME (arXiv:2307.02047): factored second moments, corrected by how far updates can be trusted."""

    class_name: ClassVar[str] = "CAME"
    state_tensors: ClassVar[float] = 1.0

    type: Literal["came"] = "came"
    """The optimizer's name."""
    betas: ThreeBetas = (0.9, 0.999, 0.9999)
    """Decay rates of the update, of its square and of its residual."""
    clip_threshold: float = Field(default=1.0, gt=0.0)
    """Root mean square of an update above which it is scaled down."""
    eps1: float = Field(default=1e-30, gt=0.0)
    """Added to squared gradients."""
    eps2: float = Field(default=1e-16, gt=0.0)
    """Added to squared residuals."""


class AdEMAMixConfig(LibraryConfig):
    """AdEMAMix (arXiv:2409.03137): Adam with a second, slow momentum."""

    class_name: ClassVar[str] = "AdEMAMix"
    settings: ClassVar[dict[str, bool]] = {"weight_decouple": True}
    state_tensors: ClassVar[float] = 3.0

    type: Literal["ademamix"] = "ademamix"
    """The optimizer's name."""
    betas: ThreeBetas = (0.9, 0.999, 0.9999)
    """Decay rates of the fast momentum, of the second moment and of the slow momentum."""
    alpha: float = Field(default=5.0, ge=0.0)
    """Weight of the slow momentum."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the denominator."""


class AdanConfig(LibraryConfig):
    """Adan (arXiv:2208.06677): Nesterov momentum by differences of gradients."""

    class_name: ClassVar[str] = "Adan"
    settings: ClassVar[dict[str, bool]] = {"weight_decouple": True}
    state_tensors: ClassVar[float] = 4.0

    type: Literal["adan"] = "adan"
    """The optimizer's name."""
    betas: ThreeBetas = (0.98, 0.92, 0.99)
    """Decay rates of the gradient, of its differences and of the second moment."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the denominator."""


class _ProjectedConfig(LibraryConfig):
    """Moments of a projection of each matrix's gradient."""

    group_fields: ClassVar[tuple[str, ...]] = ("rank", "update_proj_gap", "scale", "projection_type")

    betas: Betas = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(default=1e-6, gt=0.0)
    """Added to the denominator."""
    update_proj_gap: int = Field(default=200, ge=1)
    """Steps between new projections."""
    scale: float = Field(default=1.0, gt=0.0)
    """Multiplies what is projected back."""
    projection_type: Literal["std", "reverse_std", "right", "left"] = "std"
    """Which side of a matrix is projected: std the shorter."""


class GaLoreConfig(_ProjectedConfig):
    """GaLore (arXiv:2403.03507): AdamW on gradients of low rank; for methods that train whole matrices."""

    class_name: ClassVar[str] = "GaLore"

    type: Literal["galore"] = "galore"
    """The optimizer's name."""
    rank: int = Field(default=128, ge=1)
    """Rank of the projection; matrices that are narrower are not projected."""


class ApolloConfig(_ProjectedConfig):
    """APOLLO (arXiv:2412.05270): rates by channel from random projections; for methods that train whole matrices."""

    class_name: ClassVar[str] = "APOLLO"

    type: Literal["apollo"] = "apollo"
    """The optimizer's name."""
    rank: int = Field(default=128, ge=1)
    """Rank of the projection; matrices that are narrower are not projected."""
    scale_type: Literal["channel", "tensor"] = "channel"
    """One factor a channel, or one a matrix."""


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
