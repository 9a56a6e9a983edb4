"""Fields of adapter layers, small networks at the sublayers of each block; free of torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftcli.adapters.config import Kind, MethodConfig
from peftcli.errors import FieldFault

Placement = Literal["pfeiffer", "houlsby", "parallel"]
"""Where adapters sit in a block: after the feed-forward part, after both parts, or beside the feed-forward part."""
NonLinearity = Literal["relu", "gelu", "gelu_new", "silu", "swish", "tanh", "sigmoid", "leaky_relu"]
"""The functions between the two projections, by AdapterHub's names."""
Scaling = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["learned", "channel"]
"""What the adapter's output is multiplied by: a number, one learned number, or a learned one for each channel."""


class SublayerConfig(MethodConfig):
    """What adapter layers share; a method adds `placement`, `reduction_factor`, and how its projections are made."""

    kind: ClassVar[Kind] = "layers"

    placement: Placement
    reduction_factor: Annotated[float, Field(gt=0)]
    non_linearity: NonLinearity
    scaling: Scaling
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's output, while training."""
    ln_before: bool = False
    """A layer norm of the adapter's own on its input."""
    ln_after: bool = False
    """A layer norm of the adapter's own on its output."""
    adapter_residual_before_ln: bool = False
    """With ln_after: norm the sum of the sublayer's and the adapter's output, not the adapter's alone."""
    layers_to_transform: int | list[int] | None = None
    """Only these blocks, by number; an encoder's blocks count before a decoder's."""
    modules_to_save: list[str] | None = None
    """Modules trained whole beside the adapter layers, e.g. a classification head; saved with them."""

    @model_validator(mode="after")
    def _residual_order_needs_a_norm(self) -> Self:
        if self.adapter_residual_before_ln and not self.ln_after:
            raise FieldFault("`adapter_residual_before_ln` has no effect without `ln_after: true`")
        return self
