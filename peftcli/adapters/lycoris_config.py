"""What the methods of LyCORIS (arXiv:2309.14859) have in common in recipes and files; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from peftcli.adapters.file_values import ANY_NUMBER, SHARE, Bounds
from peftcli.adapters.target_config import TARGET_DEFAULTS, TargetedConfig

LYCORIS_DEFAULTS: Mapping[str, Any] = {
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
"""The reference's defaults of these fields, and of those for convolutions, which are not adapted here."""


class LycorisConfig(TargetedConfig):
    """A product of small matrices of rank r, scaled by alpha / r, with two kinds of dropout."""

    size_fields: ClassVar[tuple[str, ...]] = ("r",)
    file_bounds: ClassVar[Mapping[str, Bounds]] = {
        "alpha": ANY_NUMBER,
        "alpha_pattern": ANY_NUMBER,
        "rank_dropout": SHARE,
        "module_dropout": SHARE,
    }

    r: Annotated[int, Field(ge=1)] = 8
    """Rank."""
    alpha: Annotated[int | float, Field(gt=0, allow_inf_nan=False)] = 8
    """Numerator of the scale alpha / r."""
    rank_dropout: Annotated[int | float, Field(ge=0, lt=1)] = 0.0
    """Chance that an output of the update is left out, while training."""
    module_dropout: Annotated[int | float, Field(ge=0, lt=1)] = 0.0
    """Chance that a layer's update is left out, while training."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Other ranks for some layers: end of a path, or regular expression -> r. The first match counts."""
    alpha_pattern: dict[str, Annotated[int | float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Other alpha for some layers, likewise."""
