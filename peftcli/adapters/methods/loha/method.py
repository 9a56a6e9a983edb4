"""LoHa (FedPara, arXiv:2108.06098, eq. 1; LyCORIS, arXiv:2309.14859).

    y = W x + b + s ((w1_a w1_b) * (w2_a w2_b)) x        s = alpha / r

Shapes: w1_a, w2_a (out_features, r), w1_b, w2_b (r, in_features).
Keys: `P.hada_w1_a`, `P.hada_w1_b`, `P.hada_w2_a`, `P.hada_w2_b`. Compared with peft 0.21.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.adapters.base import InitContext, Shapes
from peftcli.adapters.draws import kaiming_uniform
from peftcli.adapters.dropouts import drop_outputs, drops_module
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.linears import LinearsAdapter, LinearsMethod, rank_faults
from peftcli.adapters.methods.loha.config import LohaConfig
from peftcli.adapters.targets import pattern_value
from peftcli.errors import Fault
from peftcli.models.weights import weight_view


class LohaLayer(AdapterLayer):
    """The update of one linear layer."""

    def __init__(self, base_layer: nn.Module, r: int, scaling: float, config: LohaConfig) -> None:
        super().__init__(base_layer)
        view = weight_view(unwrapped(base_layer))
        out_features, in_features = view.shape
        self.r = r
        self.scaling = scaling
        self.config = config
        self.hada_w1_a = nn.Parameter(torch.empty(out_features, r, device=view.device))
        self.hada_w1_b = nn.Parameter(torch.empty(r, in_features, device=view.device))
        self.hada_w2_a = nn.Parameter(torch.empty(out_features, r, device=view.device))
        self.hada_w2_b = nn.Parameter(torch.empty(r, in_features, device=view.device))
        # a product of rank r^2 is cheaper as two thin factors while r^2 is small beside the layer
        self.thin = r * r <= min(out_features, in_features) // 4

    def adapted(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """W x + b + s ((w1_a w1_b) * (w2_a w2_b)) x, (..., out_features)."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if drops_module(self.config.module_dropout, self.training):
            return result
        update = self._update(x.to(self.hada_w1_a.dtype)) * self.scaling
        update = drop_outputs(update, self.config.rank_dropout, self.training)
        return (result + update).to(result.dtype)

    def _update(self, x: Tensor) -> Tensor:
        if self.thin:
            spread, gather = self.factors()
            # gather first: the input shrinks to r^2 before it is spread
            return F.linear(F.linear(x, gather), spread)
        return F.linear(x, (self.hada_w1_a @ self.hada_w1_b) * (self.hada_w2_a @ self.hada_w2_b))

    def factors(self) -> tuple[Tensor, Tensor]:
        """The product as two factors, (out, r^2) and (r^2, in): row-wise Kronecker products of the halves."""
        spread = (self.hada_w1_a[:, :, None] * self.hada_w2_a[:, None, :]).flatten(1)
        gather = (self.hada_w1_b[:, None, :] * self.hada_w2_b[None, :, :]).flatten(0, 1)
        return spread, gather

    def tensors(self) -> dict[str, Tensor]:
        return {name: self.get_parameter(name) for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}

    @torch.no_grad()
    def initialise(self, context: InitContext) -> None:
        """w2_b zero, the others Kaiming-uniform; all of them with `init_weights: false`."""
        for name, tensor in self.tensors().items():
            # one zero factor makes the product zero, and leaves the other three a start that gradients can move
            if name == "hada_w2_b" and self.config.init_weights:
                tensor.zero_()
            else:
                tensor.copy_(kaiming_uniform(tensor.shape, context.generator))

    def delta_weight(self) -> Tensor:
        """s (w1_a w1_b) * (w2_a w2_b), float32, (out_features, in_features)."""
        # float32 whatever the adapter's dtype: products of halves lose bits in bfloat16
        w1_a, w1_b, w2_a, w2_b = (tensor.detach().float() for tensor in self.tensors().values())
        return (w1_a @ w1_b) * (w2_a @ w2_b) * self.scaling

    def merged(self) -> dict[str, Tensor]:
        """W + s (w1_a w1_b) * (w2_a w2_b)."""
        view = weight_view(unwrapped(self.base_layer))
        return {"weight": view.stored(view.dense() + self.delta_weight())}


class LohaAdapter(LinearsAdapter):
    """Says when it does not start as the base."""

    config: LohaConfig

    def start_differs(self) -> str | None:
        return None if self.config.init_weights else "init_weights: false starts at random"


class Loha(LinearsMethod[LohaConfig]):
    """Wraps each linear layer that is targeted."""

    config_class = LohaConfig
    tensor_prefix = "hada_"

    def new_adapter(self, model: nn.Module, config: LohaConfig) -> LohaAdapter:
        return LohaAdapter(model, config)

    def faults(self, config: LohaConfig, path: str, module: nn.Module, shapes: Shapes | None) -> list[Fault]:
        """A rank that the file's tensors do not have."""
        return rank_faults(path, module, _rank(config, path), shapes, "hada_w1_b")

    def layer(self, config: LohaConfig, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        r = _rank(config, path)
        return LohaLayer(module, r, pattern_value(config.alpha_pattern, path, config.alpha) / r, config)


def _rank(config: LohaConfig, path: str) -> int:
    return int(pattern_value(config.rank_pattern, path, config.r))


METHOD = Loha()
