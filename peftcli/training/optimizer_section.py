"""What every section of an optimizer states; free of torch."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
"""Of a decay rate: 1 would never forget."""
Betas = Annotated[tuple[Fraction, Fraction], Field(strict=False)]
"""Decay rates of two running means; YAML has them as a list."""
ThreeBetas = Annotated[tuple[Fraction, Fraction, Fraction], Field(strict=False)]
"""The same of three."""


class Section(BaseModel):
    """Fields of an optimizer or of a part of it, none beside those that are named."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class OptimizerSection(Section):
    """An optimizer, with the facts that planning and the loop ask for."""

    package: ClassVar[str | None] = None
    """Import name of the package that it comes from; None for torch and what peftcli always has."""
    state_tensors: ClassVar[float] = 2.0
    """`state_size`, where no field changes it."""
    rate_factor: ClassVar[float] = 1.0
    """What the method's own rate, found with AdamW, is multiplied by for `learning_rate: auto`."""
    still_steps: ClassVar[int] = 0
    """First steps that only prepare the state and move nothing."""
    own_rate: ClassVar[float | None] = None
    """The rate for `learning_rate: auto` of an optimizer that finds its own step size."""

    @property
    def state_size(self) -> float:
        """How many times the trained tensors its state takes, in float32."""
        return self.state_tensors
