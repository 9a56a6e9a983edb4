"""Fields of (IA)^3 (arXiv:2205.05638), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from peftcli.adapters.target_config import TargetedConfig


class Ia3Config(TargetedConfig):
    """One learned factor for each output, or for each input of the layers in `feedforward_modules`."""

    name: ClassVar[str] = "ia3"
    summary: ClassVar[str] = "one learned factor for each output (or input) of a layer"
    peft_type: ClassVar[str] = "IA3"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 5e-2
    file_defaults: ClassVar[Mapping[str, Any]] = {
        "target_modules": None,
        "exclude_modules": None,
        "feedforward_modules": None,
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "init_ia3_weights": True,
    }
    recipe_only: ClassVar[frozenset[str]] = frozenset({"layers_to_transform", "layers_pattern"})

    feedforward_modules: str | list[str] | None = Field(default_factory=list)
    """Which of the targets are scaled at their input instead: ends of paths, or one regular expression."""
    init_ia3_weights: bool = True
    """Start at one, as the base; false starts at random."""
