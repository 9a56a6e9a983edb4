"""Full fine-tuning has no fields of its own."""

from __future__ import annotations

from typing import ClassVar

from peftcli.adapters.config import Kind, MethodConfig


class FullConfig(MethodConfig):
    """Trains every parameter of the base: the baseline that the other methods are measured against."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "trains every parameter of the base: the baseline"
    kind: ClassVar[Kind] = "selection"
    peft_type: ClassVar[str] = "FULL"
    trains_heads: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 2e-3
    # whole matrices under Adam: the best rate falls with the width itself (arXiv:2203.03466)
    learning_rate_exponent: ClassVar[float] = 1.0
