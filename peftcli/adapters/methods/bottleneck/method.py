"""Bottleneck adapters: Houlsby (arXiv:1902.00751), Pfeiffer (arXiv:2005.00247), parallel (arXiv:2110.04366).

    f(z) = W_up act(W_down z + b_down) + b_up        placed as `adapters.sublayer_adapters` says

Shapes: W_down (bottleneck, hidden), W_up (hidden, bottleneck); bottleneck = hidden / reduction_factor.
Keys: `P.adapter_down.weight`, `.bias`, `P.adapter_up.weight`, `.bias`, `P.adapter_scaling`, `P.adapter_ln_before.weight`
..., P the path of the sublayer's last linear layer. Not in the reference library; compared with adapters 1.3.0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftcli.adapters.draws import kaiming_uniform
from peftcli.adapters.methods.bottleneck.config import BottleneckConfig
from peftcli.adapters.sublayer_adapters import SublayerLayer, SublayersAdapter, SublayersMethod
from peftcli.models.sublayers import ResidualTap, Sublayer


class BottleneckLayer(SublayerLayer):
    """Two plain linear projections."""

    config: BottleneckConfig
    adapter_down: nn.Linear
    adapter_up: nn.Linear

    def start_projections(self, generator: torch.Generator) -> None:
        """`bert`: normal weights on both sides; `zero`: Kaiming-uniform down, zero up. Biases zero."""
        how = self.config.init_weights
        with torch.no_grad():
            _start(self.adapter_down, "normal" if how == "bert" else "uniform", generator)
            # uniform down and zero up: the start is the base, and a gradient still reaches the down projection's output
            _start(self.adapter_up, "normal" if how == "bert" else "zero", generator)


def _start(linear: nn.Linear, how: str, generator: torch.Generator) -> None:
    shape = linear.weight.shape
    if how == "zero":
        linear.weight.zero_()
    elif how == "normal":
        # 0.02 is the standard deviation BERT itself starts with; drawn on the CPU, so that every device has the same
        # start
        linear.weight.copy_(torch.empty(shape).normal_(0.0, 0.02, generator=generator))
    else:
        linear.weight.copy_(kaiming_uniform(shape, generator))
    if linear.bias is not None:
        linear.bias.zero_()


class BottleneckAdapter(SublayersAdapter):
    """States whether the start is the base."""

    config: BottleneckConfig

    def start_differs(self) -> str | None:
        if self.config.init_weights == "bert":
            return "init_weights: bert starts near the base, not at it"
        return super().start_differs()


class Bottleneck(SublayersMethod[BottleneckConfig]):
    """Linear projections at each sublayer."""

    config_class = BottleneckConfig

    def new_adapter(self, model: nn.Module, config: BottleneckConfig) -> BottleneckAdapter:
        """An adapter without layers."""
        return BottleneckAdapter(model, config)

    def layer(
        self,
        adapter: SublayersAdapter,
        config: BottleneckConfig,
        width: int,
        tap: ResidualTap | None,
        sublayer: Sublayer,
    ) -> BottleneckLayer:
        """The wrapper of one sublayer, (hidden -> hidden / reduction_factor -> hidden)."""
        # at least one unit: a factor above the width is no error in AdapterHub either
        size = max(1, int(width // config.reduction_factor))
        where: dict[str, Any] = {"device": next(sublayer.output.parameters()).device, "bias": config.bias}
        pair = (nn.Linear(width, size, **where), nn.Linear(size, width, **where))
        return BottleneckLayer(sublayer.output, config, width, tap, sublayer.next_norm, pair)


METHOD = Bottleneck()
