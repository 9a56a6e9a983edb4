"""Fields of bottleneck adapters (arXiv:1902.00751, arXiv:2005.00247, arXiv:2110.04366)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftcli.adapters.config import Kind, MethodConfig


class BottleneckConfig(MethodConfig):
    """A small two-layer network beside or after sublayers: h + scaling * up(f(down(.)))."""

    name: ClassVar[str] = "bottleneck"
    summary: ClassVar[str] = "adapter layers: a small bottleneck network after or beside each sublayer"
    kind: ClassVar[Kind] = "layers"
    peft_type: ClassVar[str] = "BOTTLENECK"
    learning_rate: ClassVar[float] = 5e-3
    short_names: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "pfeiffer": {"placement": "pfeiffer"},
        "houlsby": {"placement": "houlsby"},
        "parallel_adapter": {"placement": "parallel"},
    }

    placement: Literal["pfeiffer", "houlsby", "parallel"] = "parallel"
    """pfeiffer: after the feed-forward sublayer, reading the sum with the residual stream; houlsby: after attention and
    feed-forward, reading their output; parallel: beside the feed-forward sublayer, reading the residual stream."""
    reduction_factor: Annotated[float, Field(gt=0)] = 2
    """Hidden size of the base over the size of the bottleneck."""
    non_linearity: Literal["relu", "gelu", "silu", "swish", "tanh", "leaky_relu"] = "relu"
    """Activation between down- and up-projection."""
    scaling: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["learned"] = 4.0
    """Factor of the adapter's output, fixed, or learned from 1."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the bottleneck, while training."""
    ln_before: bool = False
    """A layer norm of the adapter's own on its input."""
    ln_after: bool = False
    """A layer norm of the adapter's own on its output (not the identity at the start)."""
    bias: bool = True
    """Biases of the two projections."""
    init_weights: Literal["zero", "bert", "mam_adapter"] = "zero"
    """Start: zero (down Kaiming-uniform, up zero: the identity), bert (both normal with deviation 0.02, as AdapterHub's
    default; nearly the identity), mam_adapter (down Kaiming-uniform, up and biases zero)."""

    @model_validator(mode="after")
    def _learned_scaling_is_parallel(self) -> Self:
        if self.scaling == "learned" and self.placement != "parallel":
            raise ValueError("a learned scaling belongs to placement: parallel")
        return self
