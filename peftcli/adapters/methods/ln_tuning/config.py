"""Fields of LN tuning (arXiv:2312.11420), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from peftcli.adapters.config import Kind
from peftcli.adapters.target_config import TargetedConfig


class LnTuningConfig(TargetedConfig):
    """Trains the scales (and shifts) of the base's norms, and nothing else."""

    name: ClassVar[str] = "ln_tuning"
    summary: ClassVar[str] = "trains the base's own layer norms"
    kind: ClassVar[Kind] = "selection"
    peft_type: ClassVar[str] = "LN_TUNING"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 3e-2
    file_defaults: ClassVar[Mapping[str, Any]] = {
        "target_modules": None,
        "exclude_modules": None,
        "modules_to_save": None,
    }
    recipe_only: ClassVar[frozenset[str]] = frozenset({"layers_to_transform", "layers_pattern"})

    target_modules: str | list[str] | None = None
    """Norms to train: a list of names or paths, or one regular expression for whole paths; default: every norm on the
    residual stream (not those of queries and keys)."""
    modules_to_save: list[str] | None = None
    """Modules trained whole beside the norms, e.g. a head; saved with the adapter."""
