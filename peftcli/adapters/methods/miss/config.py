"""Fields of MiSS (arXiv:2409.15371), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftcli.adapters.file_values import SHARE, Bounds
from peftcli.adapters.target_config import TARGET_DEFAULTS, TargetedConfig
from peftcli.errors import FieldFault


class MissConfig(TargetedConfig):
    """Inputs that are r apart share what they add to an output: one small matrix, repeated along the layer."""

    name: ClassVar[str] = "miss"
    summary: ClassVar[str] = "one small matrix for each layer, repeated along its inputs"
    peft_type: ClassVar[str] = "MISS"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 2.5e-3
    size_fields: ClassVar[tuple[str, ...]] = ("r",)
    file_defaults: ClassVar[Mapping[str, Any]] = {
        **TARGET_DEFAULTS,
        "r": 64,
        "miss_dropout": 0.0,
        "mini_r": 1,
        "init_weights": True,
        "bias": "none",
    }
    file_bounds: ClassVar[Mapping[str, Bounds]] = {"miss_dropout": SHARE}

    r: Annotated[int, Field(ge=1)] = 16
    """Rank: inputs that are r apart share their weights."""
    miss_dropout: Annotated[int | float, Field(ge=0, lt=1)] = 0.0
    """Dropout of the layer's input on its way into the update."""
    mini_r: Annotated[int, Field(ge=1)] = 1
    """With init_weights: mini, outputs that are mini_r apart share their weights too; it divides the layer's outputs."""
    init_weights: bool | Literal["mini", "bat"] = True
    """Start as the base; mini does too, with a smaller matrix; false starts at random. bat, which starts as the base,
    changes each block of r outputs and r inputs by a multiple of itself: r divides both widths."""
    bias: Literal["none", "all", "MiSS_only"] = "none"
    """Which of the base's biases are trained too."""

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.mini_r != 1 and self.init_weights != "mini":
            raise FieldFault("mini_r has no effect without init_weights: mini")
        if self.miss_dropout and self.init_weights == "bat":
            raise FieldFault("miss_dropout has no effect with init_weights: bat, which changes the weight itself")
        return self

    @classmethod
    def idle_fields(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        """`mini_r` where outputs share nothing; dropout where the weight itself is changed."""
        how = document.get("init_weights")
        return ({} if how == "mini" else {"mini_r": 1}) | ({"miss_dropout": 0.0} if how == "bat" else {})
