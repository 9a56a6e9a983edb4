"""Fields of LoHa (arXiv:2108.06098, arXiv:2309.14859), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from peftcli.adapters.file_values import ANY_NUMBER, SHARE, Bounds
from peftcli.adapters.target_config import TARGET_DEFAULTS, TargetedConfig


class LohaConfig(TargetedConfig):
    """The update is the Hadamard product of two low-rank products, of rank up to r^2."""

    name: ClassVar[str] = "loha"
    summary: ClassVar[str] = "Hadamard product of two low-rank products, of rank up to r squared"
    peft_type: ClassVar[str] = "LOHA"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 1.5e-2
    size_fields: ClassVar[tuple[str, ...]] = ("r",)
    file_defaults: ClassVar[Mapping[str, Any]] = {
        **TARGET_DEFAULTS,
        "rank_pattern": {},
        "alpha_pattern": {},
        "r": 8,
        "alpha": 8,
        "rank_dropout": 0.0,
        "module_dropout": 0.0,
        "use_effective_conv2d": False,
        "init_weights": True,
    }
    file_bounds: ClassVar[Mapping[str, Bounds]] = {
        "alpha": ANY_NUMBER,
        "alpha_pattern": ANY_NUMBER,
        "rank_dropout": SHARE,
        "module_dropout": SHARE,
    }

    r: Annotated[int, Field(ge=1)] = 8
    """Rank of each of the two products."""
    alpha: Annotated[int | float, Field(gt=0, allow_inf_nan=False)] = 16
    """Numerator of the scale alpha / r."""
    rank_dropout: Annotated[int | float, Field(ge=0, lt=1)] = 0.0
    """Chance that an output of the update is left out, while training."""
    module_dropout: Annotated[int | float, Field(ge=0, lt=1)] = 0.0
    """Chance that a layer's update is left out, while training."""
    init_weights: bool = True
    """Start as the base (one factor is zero); false starts at random."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Other ranks for some layers: end of a path, or regular expression -> r. The first match counts."""
    alpha_pattern: dict[str, Annotated[int | float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Other alpha for some layers, likewise."""
