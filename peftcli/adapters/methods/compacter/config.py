"""Fields of Compacter (arXiv:2106.04647)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from peftcli.adapters.sublayer_config import NonLinearity, Placement, Scaling, SublayerConfig


class CompacterConfig(SublayerConfig):
    """Adapter layers whose projections are sums of Kronecker products, of small matrices shared by all layers and
    low-rank ones of their own."""

    name: ClassVar[str] = "compacter"
    summary: ClassVar[str] = "adapter layers made of Kronecker products: very few parameters"
    peft_type: ClassVar[str] = "COMPACTER"
    learning_rate: ClassVar[float] = 2e-2
    short_names: ClassVar[Mapping[str, Mapping[str, Any]]] = {"compacter_plus_plus": {"placement": "pfeiffer"}}

    placement: Placement = "houlsby"
    """houlsby: after attention and feed-forward, reading their output (Compacter); pfeiffer: after the feed-forward
    sublayer, reading the sum with the residual stream (Compacter++); parallel: beside the feed-forward sublayer."""
    reduction_factor: Annotated[float, Field(gt=0)] = 4
    """Hidden size of the base over the size of the bottleneck."""
    non_linearity: NonLinearity = "gelu"
    """Activation between down- and up-projection."""
    scaling: Scaling = 1.0
    """Factor of the adapter's output: fixed, `learned` (one number, from 1), or `channel` (one for each channel)."""
    bias: bool = True
    """Biases of the two projections."""
    phm_dim: Annotated[int, Field(ge=1)] = 4
    """Number of Kronecker products in a sum, n; divides hidden size and bottleneck. The shared matrices are n x n."""
    phm_rank: Annotated[int, Field(ge=1)] | None = 1
    """Rank of the matrices that each projection has of its own; null: full matrices."""
    shared_phm_rule: bool = True
    """One set of n x n matrices for all layers; false: each projection has its own."""
    learn_phm: bool = True
    """Train the n x n matrices; false: they stay as drawn."""
    init_weights: Literal["zero", "glorot"] = "zero"
    """Start: zero (the up-projection is zero: the identity), or glorot (as AdapterHub: n x n matrices of deviation
    0.0001, the rest Glorot-uniform; nearly the identity)."""
