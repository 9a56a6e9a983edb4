"""LoKr (LyCORIS, arXiv:2309.14859, section 3.2).

    y = W x + b + s kron(w1, w2) x        s = alpha / r

Shapes: w1 (o1, i1), w2 (o2, i2) with o1 o2 = out_features, i1 i2 = in_features. A factor may be low-rank:
w2 = w2_a w2_b with (o2, r) and (r, i2) unless r is half its size or more, w1 likewise with `decompose_both`.
kron(w1, w2) x never forms the product: x as (i1, i2) goes through w2, then through w1.

Keys: `P.lokr_w1` or `P.lokr_w1_a`, `P.lokr_w1_b`; `P.lokr_w2` or `P.lokr_w2_a`, `P.lokr_w2_b`.
Compared with peft 0.21.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.adapters.base import FILE_PREFIX, InitContext, Shapes
from peftcli.adapters.draws import kaiming_uniform
from peftcli.adapters.dropouts import drop_outputs, drops_module
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.linears import LinearsAdapter, LinearsMethod
from peftcli.adapters.methods.lokr.config import LokrConfig
from peftcli.adapters.targets import pattern_value
from peftcli.errors import Fault
from peftcli.models.weights import weight_view


def factor_pair(size: int, factor: int) -> tuple[int, int]:
    """Two numbers with m n = size: (factor, size / factor) where it divides, else the most square pair, m <= n."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    # -1: no bound but the size itself
    limit = size if factor == -1 else factor
    m = max(m for m in range(1, int(size**0.5) + 1) if size % m == 0 and m <= limit)
    return m, size // m


class LokrLayer(AdapterLayer):
    """The update of one linear layer; `shapes` names the tensors in use."""

    def __init__(self, base_layer: nn.Module, r: int, scaling: float, config: LokrConfig) -> None:
        super().__init__(base_layer)
        view = weight_view(unwrapped(base_layer))
        self.scaling = scaling
        self.config = config
        self.out_features, self.in_features = view.shape
        self.shapes = factor_shapes(view.shape, r, config)
        for name, shape in self.shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=view.device)))

    def factor(self, name: str) -> Tensor:
        """w1 or w2 as one matrix."""
        if name in self.shapes:
            return self.get_parameter(name)
        return self.get_parameter(f"{name}_a") @ self.get_parameter(f"{name}_b")

    def adapted(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """W x + b + s kron(w1, w2) x, (..., out_features)."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if drops_module(self.config.module_dropout, self.training):
            return result
        w1, w2 = self.factor("lokr_w1"), self.factor("lokr_w2")
        lead = x.shape[:-1]
        # two-dimensional products: the same order of sums whether or not a gradient is asked for
        parts = F.linear(x.to(w1.dtype).reshape(-1, w2.shape[1]), w2)  # (rows i1, o2)
        parts = parts.view(-1, w1.shape[1], w2.shape[0]).transpose(1, 2)  # (rows, o2, i1)
        parts = F.linear(parts.reshape(-1, w1.shape[1]), w1)  # (rows o2, o1)
        parts = parts.view(-1, w2.shape[0], w1.shape[0]).transpose(1, 2)  # (rows, o1, o2)
        update = parts.reshape(*lead, -1) * self.scaling
        update = drop_outputs(update, self.config.rank_dropout, self.training, rescale=self.config.rank_dropout_scale)
        return (result + update).to(result.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {name: self.get_parameter(name) for name in self.shapes}

    @torch.no_grad()
    def initialise(self, context: InitContext) -> None:
        """w1 zero, the rest Kaiming-uniform; `lycoris`: w2 zero in its place; `false`: nothing zero."""
        how = self.config.init_weights
        zero = {"lokr_w2": how == "lycoris", "lokr_w1": how is True}
        for name, tensor in self.tensors().items():
            first = name in ("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w2_a")
            if first and zero[name[:7]]:
                tensor.zero_()
            else:
                tensor.copy_(kaiming_uniform(tensor.shape, context.generator))

    def delta_weight(self) -> Tensor:
        """s kron(w1, w2), float32, (out_features, in_features)."""
        w1, w2 = self.factor("lokr_w1").detach().float(), self.factor("lokr_w2").detach().float()
        return torch.kron(w1, w2) * self.scaling

    def merged(self) -> dict[str, Tensor]:
        """W + s kron(w1, w2)."""
        view = weight_view(unwrapped(self.base_layer))
        return {"weight": view.stored(view.dense() + self.delta_weight())}


def factor_shapes(shape: tuple[int, int], r: int, config: LokrConfig) -> dict[str, tuple[int, int]]:
    """Name of each tensor on disk -> its shape, for a layer (out_features, in_features)."""
    (o1, o2), (i1, i2) = (factor_pair(size, config.decompose_factor) for size in shape)
    found: dict[str, tuple[int, int]] = {}
    # as LyCORIS decides it: a factor of half its size or more saves nothing
    if config.decompose_both and r < max(o1, i1) / 2:
        found |= {"lokr_w1_a": (o1, r), "lokr_w1_b": (r, i1)}
    else:
        found["lokr_w1"] = (o1, i1)
    if r < max(o2, i2) / 2:
        found |= {"lokr_w2_a": (o2, r), "lokr_w2_b": (r, i2)}
    else:
        found["lokr_w2"] = (o2, i2)
    return found


class LokrAdapter(LinearsAdapter):
    """Says when it does not start as the base."""

    config: LokrConfig

    def start_differs(self) -> str | None:
        return None if self.config.init_weights else "init_weights: false starts at random"


class Lokr(LinearsMethod[LokrConfig]):
    """Wraps each linear layer that is targeted."""

    config_class = LokrConfig
    tensor_prefix = "lokr_"

    def new_adapter(self, model: nn.Module, config: LokrConfig) -> LokrAdapter:
        return LokrAdapter(model, config)

    def faults(self, config: LokrConfig, path: str, module: nn.Module, shapes: Shapes | None) -> list[Fault]:
        """Tensors of the file in other shapes than the configuration gives them."""
        expected = factor_shapes(weight_view(module).shape, _rank(config, path), config)
        return [
            Fault(f"`{path}.{name}` has shape {list(found)}, the configuration makes it {list(shape)}")
            for name, shape in expected.items()
            if shapes is not None and (found := shapes.get(f"{FILE_PREFIX}{path}.{name}", shape)) != shape
        ]

    def layer(self, config: LokrConfig, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        r = _rank(config, path)
        return LokrLayer(module, r, pattern_value(config.alpha_pattern, path, config.alpha) / r, config)


def _rank(config: LokrConfig, path: str) -> int:
    return int(pattern_value(config.rank_pattern, path, config.r))


METHOD = Lokr()
