"""Compacter (arXiv:2106.04647, eq. 5-6): adapter layers with parametrised hypercomplex projections.

    y = x H + b,    H = sum_i  A_i (x) B_i        (Kronecker product),    B_i = s_i t_i  of low rank

Shapes, n = phm_dim, k = phm_rank: A (n, n, n), one for all layers; s (n, in / n, k), t (n, k, out / n); B itself
(n, in / n, out / n) where it is not factorised; H (in, out).
Keys: `base_model.phm_rule` (A), `P.adapter_down.W_left`, `.W_right`, `.b`, `P.adapter_up...`, P the path of the
sublayer's last linear layer; `.W` in the place of the pair, `.phm_rule` where each projection has an A of its own. Not
in the reference library; compared with adapters 1.3.0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from peftcli.adapters.base import Entry, InitContext
from peftcli.adapters.methods.compacter.config import CompacterConfig
from peftcli.adapters.sublayer_adapters import SublayerLayer, SublayersAdapter, SublayersMethod
from peftcli.errors import AdapterError
from peftcli.models.sublayers import ResidualTap, Sublayer

RULE_KEY = "base_model.phm_rule"
"""The key under which all layers share one rule, the stack of small matrices of the Kronecker sums."""
_SMALL = 1e-4


class Projection(nn.Module):
    """x (..., in) -> (..., out) through a sum of Kronecker products."""

    phm_rule: Tensor
    W_left: Tensor
    W_right: Tensor
    b: Tensor | None

    def __init__(self, sizes: tuple[int, int], config: CompacterConfig, rule: Tensor | None, device: torch.device):
        super().__init__()
        n, k = config.phm_dim, config.phm_rank
        rows, columns = (size // n for size in sizes)

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device))

        self.shares_rule = rule is not None
        _hold(self, "phm_rule", new_rule(config, device) if rule is None else rule)
        if k is None:
            self.W = empty(n, rows, columns)
        else:
            self.W_left, self.W_right = empty(n, rows, k), empty(n, k, columns)
        if config.bias:
            self.b = empty(sizes[1])
        else:
            self.register_parameter("b", None)

    def forward(self, x: Tensor) -> Tensor:
        """x H + b."""
        product = x @ self.matrix()
        return product if self.b is None else product + self.b

    def matrix(self) -> Tensor:
        """H, (in, out)."""
        full = self._parameters.get("W")
        own = self.W_left @ self.W_right if full is None else full
        n, rows, columns = own.shape
        # (n, a, b) x (n, i, j) -> (a i, b j)
        blocks = torch.einsum("nab,nij->aibj", self.phm_rule.to(own.device), own)
        return blocks.reshape(n * rows, n * columns)

    def own_tensors(self) -> dict[str, Tensor]:
        """Name -> tensor of everything but a shared rule."""
        found: dict[str, Tensor] = {name: value for name, value in self.named_parameters() if name != "phm_rule"}
        return found if self.shares_rule else found | {"phm_rule": self.phm_rule}

    def start(self, generator: torch.Generator, *, zero: bool) -> None:
        """Glorot-uniform by block; `zero` makes H zero and leaves a gradient to the last factor."""
        weights = [value for name in ("W_left", "W_right", "W") if (value := self._parameters.get(name)) is not None]
        with torch.no_grad():
            for weight in weights:
                # Glorot: the widths on both sides of the factor
                bound = math.sqrt(6.0 / (weight.shape[1] + weight.shape[2]))
                weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
            if zero:
                # the last factor: all others keep a gradient, which a zero in front would take from them
                weights[-1].zero_()
            if self.b is not None:
                self.b.zero_()


def new_rule(config: CompacterConfig, device: torch.device) -> Tensor:
    """A (n, n, n), not initialised; a parameter where it is trained."""
    empty = torch.empty((config.phm_dim,) * 3, device=device)
    return nn.Parameter(empty) if config.learn_phm else empty


def start_rule(rule: Tensor, config: CompacterConfig, generator: torch.Generator) -> None:
    """Normal; deviation 1 / n keeps the size of the projections' outputs, AdapterHub's is far smaller."""
    deviation = _SMALL if config.init_weights == "glorot" else 1.0 / config.phm_dim
    with torch.no_grad():
        rule.copy_(torch.empty(rule.shape).normal_(0.0, deviation, generator=generator))


def _hold(module: nn.Module, name: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


class CompacterLayer(SublayerLayer):
    """Two projections made of Kronecker products."""

    config: CompacterConfig
    adapter_down: Projection
    adapter_up: Projection

    def tensors(self) -> dict[str, Tensor]:
        """The factors of both projections, a rule only where each has its own, then scaling and norms."""
        parts = {"adapter_down": self.adapter_down, "adapter_up": self.adapter_up}
        found = {f"{name}.{leaf}": value for name, part in parts.items() for leaf, value in part.own_tensors().items()}
        return found | {name: value for name, value in super().tensors().items() if not name.startswith(tuple(parts))}

    def start_projections(self, generator: torch.Generator) -> None:
        """Rules that are not shared, then both projections; `zero` makes the one up zero."""
        identity = self.config.init_weights == "zero"
        for part in (self.adapter_down, self.adapter_up):
            if not part.shares_rule:
                start_rule(part.phm_rule, self.config, generator)
            part.start(generator, zero=identity and part is self.adapter_up)


class CompacterAdapter(SublayersAdapter):
    """Owns the matrices that all layers share."""

    config: CompacterConfig

    def __init__(self, model: nn.Module, config: CompacterConfig) -> None:
        super().__init__(model, config)
        device = next(model.parameters()).device
        self.rule = new_rule(config, device) if config.shared_phm_rule else None

    def entries(self) -> list[Entry]:
        """The shared rule first, which no layer owns."""
        own = super().entries()
        return own if self.rule is None else [Entry(RULE_KEY, self.rule), *own]

    def initialise(self, context: InitContext) -> None:
        """The shared rule is drawn before any layer."""
        if self.rule is not None:
            start_rule(self.rule, self.config, context.generator)
        super().initialise(context)

    def start_differs(self) -> str | None:
        if self.config.init_weights == "glorot":
            return "init_weights: glorot starts near the base, not at it"
        return super().start_differs()


class Compacter(SublayersMethod[CompacterConfig]):
    """Kronecker projections at each sublayer."""

    config_class = CompacterConfig

    def new_adapter(self, model: nn.Module, config: CompacterConfig) -> CompacterAdapter:
        """An adapter without layers."""
        return CompacterAdapter(model, config)

    def layer(
        self,
        adapter: SublayersAdapter,
        config: CompacterConfig,
        width: int,
        tap: ResidualTap | None,
        sublayer: Sublayer,
    ) -> CompacterLayer:
        assert isinstance(adapter, CompacterAdapter)
        size = bottleneck_size(width, config)
        device = next(sublayer.output.parameters()).device
        pair = (
            Projection((width, size), config, adapter.rule, device),
            Projection((size, width), config, adapter.rule, device),
        )
        return CompacterLayer(sublayer.output, config, width, tap, sublayer.next_norm, pair)


def bottleneck_size(width: int, config: CompacterConfig) -> int:
    """Size of the bottleneck; `AdapterError` where `phm_dim` does not divide it or the hidden size."""
    size, n = int(width // config.reduction_factor), config.phm_dim
    if width % n:
        raise AdapterError(f"phm_dim = {n} does not divide the hidden size {width}", fix="choose a divisor of it")
    if size < n or size % n:
        raise AdapterError(
            f"phm_dim = {n} does not divide the bottleneck of {size} (hidden size {width} / {config.reduction_factor:g})",
            fix=f"reduction_factor: {width // max(n, size // n * n)} gives a bottleneck of {max(n, size // n * n)}",
        )
    return size


METHOD = Compacter()
