"""HRA (arXiv:2405.17484): an orthogonal map of each layer's input, as a chain of reflections.

    y = W R x + b        R = H_1 H_2 ... H_r,   H_i = I - 2 v_i v_i^T,   v_i = u_i / |u_i|

With `apply_GS` the v_i are an orthonormal basis of the span of the u_i, and R = I - 2 V V^T.

The product is never formed. With V (in_features, r) it is I - V S^-1 V^T, S = I / 2 + the strict upper triangle of V^T V:
two thin products over the tokens instead of r passes one after another. Merged: W' = W R.

Shapes: u (in_features, r). Key: `P.hra_u`. Compared with peft 0.21.2, which adapts nn.Linear and not Conv1D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcli.adapters.base import InitContext, Shapes
from peftcli.adapters.draws import kaiming_uniform
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.linears import Biases, LinearsAdapter, LinearsMethod, rank_faults
from peftcli.adapters.methods.hra.config import HraConfig
from peftcli.errors import Fault
from peftcli.models.weights import weight_view


class HraLayer(AdapterLayer):
    """The reflections of one linear layer's input."""

    def __init__(self, base_layer: nn.Module, config: HraConfig) -> None:
        super().__init__(base_layer)
        view = weight_view(unwrapped(base_layer))
        self.config = config
        self.hra_u = nn.Parameter(torch.empty(view.shape[1], config.r, device=view.device))

    def adapted(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """W R x + b, (..., out_features)."""
        directions, mixing = self.factors()
        exact = x.to(directions.dtype)
        # a row holds x^T, so R x is x^T R^T there
        mirrored = exact - (exact @ directions) @ mixing.T @ directions.T
        return self.base_layer(mirrored.to(x.dtype), *args, **kwargs)  # type: ignore[no-any-return]

    def factors(self) -> tuple[Tensor, Tensor]:
        """V (in_features, r), columns of length one, and S^-1 (r, r): R = I - V S^-1 V^T."""
        unit = torch.eye(self.config.r, device=self.hra_u.device, dtype=self.hra_u.dtype)
        if self.config.apply_GS:
            return torch.linalg.qr(self.hra_u).Q, 2 * unit
        products = self.hra_u.T @ self.hra_u
        squares = products.diagonal()
        # for equal columns sqrt(g g) is g to the last bit: their cosine is 1, and a start in pairs the base's own answer
        cosines = torch.triu(products / torch.sqrt(squares[:, None] * squares), diagonal=1)
        return self.hra_u / squares.sqrt(), torch.linalg.solve_triangular(unit / 2 + cosines, unit, upper=True)

    def tensors(self) -> dict[str, Tensor]:
        return {"hra_u": self.hra_u}

    @torch.no_grad()
    def initialise(self, context: InitContext) -> None:
        """Equal neighbours, whose reflections cancel; `init_weights: false`: Kaiming-uniform columns."""
        width, r = self.hra_u.shape
        if not self.config.init_weights:
            self.hra_u.copy_(kaiming_uniform((r, width), context.generator).T)
            return
        # H_i H_i is the identity, and its two halves part with the first step
        half = kaiming_uniform((r // 2, width), context.generator).T
        self.hra_u.copy_(half.repeat_interleave(2, dim=1))

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """W R, as W - W V S^-1 V^T."""
        view = weight_view(unwrapped(self.base_layer))
        directions, mixing = (factor.float() for factor in self.factors())
        dense = view.dense()
        return {"weight": view.stored(dense - (dense @ directions) @ mixing @ directions.T)}


class HraAdapter(LinearsAdapter):
    """Says when it does not start as the base."""

    config: HraConfig

    def start_differs(self) -> str | None:
        return None if self.config.init_weights else "init_weights: false starts at random"


class Hra(LinearsMethod[HraConfig]):
    """Wraps each linear layer that is targeted."""

    config_class = HraConfig
    tensor_prefix = "hra_"

    def new_adapter(self, model: nn.Module, config: HraConfig) -> HraAdapter:
        return HraAdapter(model, config)

    def trained_biases(self, config: HraConfig) -> Biases:
        return "targets" if config.bias == "hra_only" else config.bias

    def faults(self, config: HraConfig, path: str, module: nn.Module, shapes: Shapes | None) -> list[Fault]:
        """A rank above the layer's inputs, or one that the file's tensor does not have."""
        width = weight_view(module).shape[1]
        return rank_faults(path, module, config.r, shapes, "hra_u", axis=1, limit=width)

    def layer(self, config: HraConfig, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        return HraLayer(module, config)


METHOD = Hra()
"""HRA."""
