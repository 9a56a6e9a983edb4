"""Fields of every method that adapts linear layers; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from peftcli.adapters.config import Kind, MethodConfig

TARGET_FOREIGN_NAMES: Mapping[str, tuple[str, ...]] = {
    "target_modules": (
        "lora_target", "lora_target_modules", "lora_target_linear", "lora_modules", "lora_attn_modules",
        "target_layers",
    ),
    "modules_to_save": ("lora_modules_to_save", "additional_target"),
}  # fmt: skip
"""Field -> what other tools call it, for advice on unknown keys."""


class TargetedConfig(MethodConfig):
    """Which layers are adapted and which modules are trained beside them.

    A method whose file in the reference lacks one of these fields names it in `recipe_only`: the rule is then resolved
    into plain paths before anything is written.
    """

    kind: ClassVar[Kind] = "layers"
    foreign_names: ClassVar[Mapping[str, tuple[str, ...]]] = TARGET_FOREIGN_NAMES

    target_modules: str | list[str] | None = "all-linear"
    """Layers to adapt: `all-linear`, a list of names or paths, or one regular expression for whole paths."""
    exclude_modules: str | list[str] | None = None
    """Layers to leave out again, by the same rules."""
    modules_to_save: list[str] | None = None
    """Modules trained whole beside the method, e.g. a head; saved with the adapter."""
    layers_to_transform: int | list[int] | None = None
    """Only these blocks, by number."""
    layers_pattern: str | list[str] | None = None
    """Name of the list of blocks, where the path alone does not show the number."""


TARGET_DEFAULTS: dict[str, Any] = {
    "target_modules": None,
    "exclude_modules": None,
    "modules_to_save": None,
    "layers_to_transform": None,
    "layers_pattern": None,
}
"""The reference's defaults of these fields."""
