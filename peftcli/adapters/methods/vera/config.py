"""Fields of VeRA (arXiv:2310.11454), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from peftcli.adapters.file_values import SHARE, Bounds
from peftcli.adapters.target_config import TargetedConfig


class VeraConfig(TargetedConfig):
    """Two frozen random matrices that all layers share; each layer learns two vectors that scale them."""

    name: ClassVar[str] = "vera"
    summary: ClassVar[str] = "two learned vectors per layer around one frozen random pair that all layers share"
    peft_type: ClassVar[str] = "VERA"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 5e-2
    size_fields: ClassVar[tuple[str, ...]] = ("r",)
    file_defaults: ClassVar[Mapping[str, Any]] = {
        "r": 256,
        "target_modules": None,
        "projection_prng_key": 0,
        "save_projection": True,
        "vera_dropout": 0.0,
        "d_initial": 0.1,
        "fan_in_fan_out": False,
        "bias": "none",
        "modules_to_save": None,
        "init_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    file_bounds: ClassVar[Mapping[str, Bounds]] = {"vera_dropout": SHARE}
    recipe_only: ClassVar[frozenset[str]] = frozenset({"exclude_modules"})

    r: Annotated[int, Field(ge=1)] = 256
    """Rank of the shared pair; it costs r trained numbers a layer, so it may exceed the layer's size."""
    projection_prng_key: Annotated[int, Field(ge=0)] = 0
    """Seed of the shared pair."""
    save_projection: bool = True
    """Write the shared pair with the adapter; without it, it is drawn again from its seed when loading."""
    vera_dropout: Annotated[int | float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the update, while training."""
    d_initial: Annotated[int | float, Field(allow_inf_nan=False)] = 0.1
    """Start value of the inner vector d."""
    bias: Literal["none", "all", "vera_only"] = "none"
    """Which of the base's biases are trained too."""
    init_weights: bool = True
    """Start as the base, b zero and d at `d_initial`; false starts at random."""

    def tunable(self) -> Mapping[str, Sequence[Any]]:
        return {"d_initial": (self.d_initial / 10, self.d_initial * 10)} if self.init_weights and self.d_initial else {}
