"""Fields of LoHa (arXiv:2108.06098, arXiv:2309.14859), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from peftcli.adapters.lycoris_config import LYCORIS_DEFAULTS, LycorisConfig


class LohaConfig(LycorisConfig):
    """The update is the Hadamard product of two low-rank products, of rank up to r^2."""

    name: ClassVar[str] = "loha"
    summary: ClassVar[str] = "Hadamard product of two low-rank products, of rank up to r squared"
    peft_type: ClassVar[str] = "LOHA"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 1.5e-2
    file_defaults: ClassVar[Mapping[str, Any]] = LYCORIS_DEFAULTS

    r: Annotated[int, Field(ge=1)] = 8
    """Rank of each of the two products."""
    alpha: Annotated[int | float, Field(gt=0, allow_inf_nan=False)] = 16
    """Numerator of the scale alpha / r."""
    init_weights: bool = True
    """Start as the base (one factor is zero); false starts at random."""
