"""Fields of BitFit (arXiv:2106.10199)."""

from __future__ import annotations

from typing import ClassVar

from peftcli.adapters.config import Kind, MethodConfig


class BitfitConfig(MethodConfig):
    """Trains every bias that the base has, and nothing else."""

    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "trains the base's own bias vectors"
    kind: ClassVar[Kind] = "selection"
    peft_type: ClassVar[str] = "BITFIT"
    learning_rate: ClassVar[float] = 1e-2

    target_modules: list[str] | None = None
    """Only biases of modules with these names or path ends; default: all."""
    modules_to_save: list[str] | None = None
    """Modules trained whole beside the biases, e.g. a head; saved with the adapter."""
