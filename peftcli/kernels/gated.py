"""The gated product of a feed-forward block, h = act(g) * u, which is computed again in the backward pass.

As torch puts it together, g, act(g), u and h are all kept: h by the layer that reads it. Here g and u are, and whoever
reads h and knows how it came about keeps them too instead of h. Both ways call the same operations on the same numbers,
so that values and gradients are equal to the bit; the price is act and one product a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Activation = Callable[[Tensor], Tensor]
"""A function of each element by itself, without trained tensors."""


@dataclass(frozen=True)
class Recipe:
    """How a tensor is computed again."""

    activation: Activation
    gate: Tensor
    up: Tensor

    def made(self) -> Tensor:
        """The tensor, without a graph."""
        return self.activation(self.gate) * self.up


_MARK = "_peftcli_recipe"


def gated_product(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up, all of one shape. Has no second derivative: asking for one raises torch's RuntimeError."""
    product: Tensor = _GatedProduct.apply(gate, up, activation)  # type: ignore[no-untyped-call]
    setattr(product, _MARK, Recipe(activation, gate.detach(), up.detach()))
    return product


def plain_gated_product(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """The same as torch puts it together."""
    return activation(gate) * up


def recipe_of(tensor: Tensor) -> Recipe | None:
    """How a tensor that `gated_product` gave is computed again; None for any other."""
    found = getattr(tensor, _MARK, None)
    assert found is None or isinstance(found, Recipe)
    return found


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        needs_gate, needs_up, _ = ctx.needs_input_grad
        with torch.enable_grad():
            again = gate.detach().requires_grad_()
            active = ctx.activation(again)
        to_up = gradient * active.detach() if needs_up else None
        to_gate = torch.autograd.grad(active, again, gradient * up)[0] if needs_gate else None
        return to_gate, to_up, None
