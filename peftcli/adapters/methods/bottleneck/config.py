"""Fields of bottleneck adapters (arXiv:1902.00751, arXiv:2005.00247, arXiv:2110.04366)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from peftcli.adapters.sublayer_config import NonLinearity, Placement, Scaling, SublayerConfig

REFERENCE_SCALE = 4.0
"""The scaling that the method's learning rate was measured at."""


class BottleneckConfig(SublayerConfig):
    """A small two-layer network beside or after sublayers: h + scaling * up(f(down(.)))."""

    name: ClassVar[str] = "bottleneck"
    summary: ClassVar[str] = "adapter layers: a small bottleneck network after or beside each sublayer"
    peft_type: ClassVar[str] = "BOTTLENECK"
    learning_rate: ClassVar[float] = 5e-3
    short_names: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "pfeiffer": {"placement": "pfeiffer", "reduction_factor": 16, "scaling": 1.0},
        "houlsby": {"placement": "houlsby", "reduction_factor": 16, "scaling": 1.0, "non_linearity": "swish"},
        "parallel_adapter": {"placement": "parallel"},
    }

    def own_learning_rate(self) -> float:
        """The default, by the placement and the root of the scale."""
        # measured: the best rate falls with the root of the scale, and doubles where the adapter reads the sublayer
        scale = self.scaling if isinstance(self.scaling, float) else 1.0
        beside = 1.0 if self.placement == "parallel" else 2.0
        return self.learning_rate * beside * math.sqrt(REFERENCE_SCALE / scale)

    placement: Placement = "parallel"
    """pfeiffer: after the feed-forward sublayer, reading the sum with the residual stream; houlsby: after attention and
    feed-forward, reading their output; parallel: beside the feed-forward sublayer, reading the residual stream."""
    reduction_factor: Annotated[float, Field(gt=0)] = 2
    """Hidden size of the base over the size of the bottleneck."""
    non_linearity: NonLinearity = "relu"
    """Activation between down- and up-projection."""
    scaling: Scaling = 4.0
    """Factor of the adapter's output: fixed, `learned` (one number, from 1), or `channel` (one for each channel)."""
    bias: bool = True
    """Biases of the two projections."""
    init_weights: Literal["zero", "bert"] = "zero"
    """Start: zero (down Kaiming-uniform, up zero: the identity), or bert (both normal with deviation 0.02, as
    AdapterHub's default; nearly the identity)."""
