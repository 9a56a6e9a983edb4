"""Bottleneck adapters: Houlsby (arXiv:1902.00751), Pfeiffer (arXiv:2005.00247), parallel (arXiv:2110.04366).

With h the output of a sublayer, x the residual stream, f the bottleneck  f(z) = up(act(down(z))):

    houlsby     h + s f(h)                 after attention and after the feed-forward sublayer
    pfeiffer    h + s f(x + h)             after the feed-forward sublayer; f(norm(x + h)) in post-norm models
    parallel    h + s f(x)                 beside the feed-forward sublayer

Shapes: down (bottleneck, hidden), up (hidden, bottleneck); bottleneck = hidden / reduction_factor.
Keys: `P.adapter_down.weight`, `.bias`, `P.adapter_up.weight`, `.bias`, `P.adapter_scaling`, `P.adapter_ln_before.weight`
..., P the path of the sublayer's last linear layer. Not in the reference library; compared with adapters 1.3.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.adapters.base import InitContext, Method, Shapes
from peftcli.adapters.layers import AdapterLayer, LayersAdapter
from peftcli.adapters.methods.bottleneck.config import BottleneckConfig
from peftcli.errors import AdapterError, MergeError
from peftcli.models.structure import hidden_size
from peftcli.models.sublayers import ResidualTap, Sublayer, sublayers

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
}


class BottleneckLayer(AdapterLayer):
    """The adapter at one sublayer, wrapped around the sublayer's last layer."""

    def __init__(
        self, base_layer: nn.Module, config: BottleneckConfig, width: int, tap: ResidualTap | None, sublayer: Sublayer
    ) -> None:
        super().__init__(base_layer)
        self.config = config
        # neither the tap nor the base's norm is a part of this module
        object.__setattr__(self, "_tap", tap)
        object.__setattr__(self, "_norm", sublayer.next_norm)
        device = next(base_layer.parameters()).device
        size = max(1, int(width // config.reduction_factor))
        self.adapter_down = nn.Linear(width, size, bias=config.bias, device=device)
        self.adapter_up = nn.Linear(size, width, bias=config.bias, device=device)
        learned = config.scaling == "learned"
        self.adapter_scaling = nn.Parameter(torch.empty(1, device=device)) if learned else None
        self.adapter_ln_before = nn.LayerNorm(width, device=device) if config.ln_before else None
        self.adapter_ln_after = nn.LayerNorm(width, device=device) if config.ln_after else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self.base_layer(*args, **kwargs)
        if not self.enabled:
            return result
        if isinstance(result, tuple):
            return (self._adapted(result[0]), *result[1:])
        return self._adapted(result)

    def _adapted(self, hidden: Tensor) -> Tensor:
        update = self._bottleneck(self._input(hidden).to(self.adapter_down.weight.dtype))
        total = hidden + update
        if self.adapter_ln_after is not None:
            total = self.adapter_ln_after(total)
        return total.to(hidden.dtype)

    def _input(self, hidden: Tensor) -> Tensor:
        """What the bottleneck reads, (batch, seq, hidden)."""
        tap: ResidualTap | None = self._tap
        if tap is None:
            return hidden
        # some layers run on flattened tokens (mixtures of experts, OPT): the stream is brought into their shape
        residual = tap.residual.reshape(hidden.shape)
        if self.config.placement == "parallel":
            return residual
        total = residual + hidden
        if not tap.post_norm or self._norm is None:
            return total
        normed: Tensor = self._norm(total)
        return normed

    def _bottleneck(self, z: Tensor) -> Tensor:
        if self.adapter_ln_before is not None:
            z = self.adapter_ln_before(z)
        z = self.dropout(ACTIVATIONS[self.config.non_linearity](self.adapter_down(z)))
        scaling = self.adapter_scaling if self.adapter_scaling is not None else self.config.scaling
        update: Tensor = self.adapter_up(z) * scaling
        return update

    def tensors(self) -> dict[str, Tensor]:
        own = {name: p for name, p in self.named_parameters() if name.startswith("adapter_")}
        return dict(own)

    def initialise(self, context: InitContext) -> None:
        generator, how = context.generator, self.config.init_weights
        with torch.no_grad():
            _start(self.adapter_down, "bert" if how == "bert" else "uniform", generator)
            _start(self.adapter_up, "bert" if how == "bert" else "zero", generator)
            if how == "mam_adapter" and self.adapter_down.bias is not None:
                self.adapter_down.bias.zero_()
            if self.adapter_scaling is not None:
                self.adapter_scaling.fill_(1.0)
            for norm in (self.adapter_ln_before, self.adapter_ln_after):
                if norm is not None:
                    norm.weight.fill_(1.0)
                    norm.bias.zero_()

    def merged(self) -> dict[str, Tensor]:
        raise MergeError(
            "bottleneck cannot be merged: its non-linearity has no weight-space form",
            fix="serve the adapter beside its base instead",
        )


def _start(linear: nn.Linear, how: str, generator: torch.Generator) -> None:
    shape = linear.weight.shape
    if how == "zero":
        linear.weight.zero_()
    elif how == "bert":
        linear.weight.copy_(torch.empty(shape).normal_(0.0, 0.02, generator=generator))
    else:
        bound = shape[1] ** -0.5
        linear.weight.copy_(torch.empty(shape).uniform_(-bound, bound, generator=generator))
    if linear.bias is not None:
        linear.bias.zero_()


class BottleneckAdapter(LayersAdapter):
    """Owns the taps on the blocks beside the wrappers."""

    def __init__(self, model: nn.Module, config: BottleneckConfig) -> None:
        super().__init__(model, config)
        self.taps: dict[str, ResidualTap] = {}

    def tap(self, block_path: str) -> ResidualTap:
        """The tap on a block, one for all its sublayers."""
        if block_path not in self.taps:
            self.taps[block_path] = ResidualTap(self.model.get_submodule(block_path))
        return self.taps[block_path]

    def remove(self) -> None:
        for tap in self.taps.values():
            tap.remove()
        self.taps.clear()
        super().remove()


class Bottleneck(Method):
    """Finds the sublayers by structure and wraps each one's last layer."""

    config_class = BottleneckConfig

    def build(self, model: nn.Module, config: BottleneckConfig, shapes: Shapes | None) -> BottleneckAdapter:
        roles = ("attention", "feed_forward") if config.placement == "houlsby" else ("feed_forward",)
        chosen = [item for item in sublayers(model) if item.role in roles]
        if not chosen:
            raise AdapterError("no block with sublayers is found in this model", fix="use lora, which needs none")
        adapter = BottleneckAdapter(model, config)
        width = hidden_size(model)
        for sublayer in chosen:
            tap = None if config.placement == "houlsby" else adapter.tap(sublayer.block_path)
            adapter.wrap(sublayer.output_path, BottleneckLayer(sublayer.output, config, width, tap, sublayer))
        return adapter


METHOD = Bottleneck()
