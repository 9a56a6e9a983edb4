"""Fields of LoKr (arXiv:2309.14859), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftcli.adapters.file_values import ANY_NUMBER, SHARE, Bounds
from peftcli.adapters.target_config import TARGET_DEFAULTS, TargetedConfig
from peftcli.errors import FieldFault


class LokrConfig(TargetedConfig):
    """The update is a Kronecker product of a small matrix and a larger, possibly low-rank one."""

    name: ClassVar[str] = "lokr"
    summary: ClassVar[str] = "Kronecker product of a small and a low-rank matrix"
    peft_type: ClassVar[str] = "LOKR"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 3e-2
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
        "decompose_both": False,
        "decompose_factor": -1,
        "rank_dropout_scale": False,
        "init_weights": True,
    }
    file_bounds: ClassVar[Mapping[str, Bounds]] = {
        "alpha": ANY_NUMBER,
        "alpha_pattern": ANY_NUMBER,
        "rank_dropout": SHARE,
        "module_dropout": SHARE,
    }

    r: Annotated[int, Field(ge=1)] = 8
    """Rank of the larger factor; a factor is kept whole where r is half its size or more."""
    alpha: Annotated[int | float, Field(gt=0, allow_inf_nan=False)] = 8
    """Numerator of the scale alpha / r."""
    rank_dropout: Annotated[int | float, Field(ge=0, lt=1)] = 0.0
    """Chance that an output of the update is left out, while training."""
    rank_dropout_scale: bool = False
    """Make up for the outputs left out by scaling the others."""
    module_dropout: Annotated[int | float, Field(ge=0, lt=1)] = 0.0
    """Chance that a layer's update is left out, while training."""
    decompose_both: bool = False
    """Give the smaller factor a low-rank form too."""
    decompose_factor: int = -1
    """Size of the smaller factor where it divides the layer; -1: as square as the layer allows."""
    init_weights: bool | Literal["lycoris"] = True
    """Start as the base, the smaller factor zero (true) or the larger one (lycoris); false starts at random."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Other ranks for some layers: end of a path, or regular expression -> r. The first match counts."""
    alpha_pattern: dict[str, Annotated[int | float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Other alpha for some layers, likewise."""

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.decompose_factor != -1 and self.decompose_factor < 1:
            raise FieldFault("decompose_factor is -1 or at least 1")
        if self.rank_dropout_scale and not self.rank_dropout:
            raise FieldFault("rank_dropout_scale has no effect without rank_dropout")
        return self

    @classmethod
    def idle_fields(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        """`rank_dropout_scale` where there is no `rank_dropout` to scale."""
        return {} if document.get("rank_dropout") else {"rank_dropout_scale": False}
