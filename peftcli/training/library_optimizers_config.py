"""Sections of the optimizers of pytorch-optimizer; free of torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from peftcli.training.optimizer_section import Betas, Fraction, OptimizerSection, ThreeBetas


class LibraryConfig(OptimizerSection):
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
