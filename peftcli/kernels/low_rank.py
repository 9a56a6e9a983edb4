"""A frozen linear layer with a low-rank update beside it: y = x W^T + b + s (x A^T) B^T (arXiv:2106.09685).

As torch puts it together, x is copied to float32 and kept once by each layer that reads it, the update is an (n, out)
matrix of its own, scaled into a second and added into a third. Here the update is accumulated into the base's product, x
is kept as it came (layers that read one tensor keep it once), and of the update only the (n, r) product is kept.

    forward    H = x A^T (n, r)      y = x W^T + b,  y += s H B^T
    backward   G = s dy B (n, r)     dx = dy W,  dx += G A      dA = G^T x      dB = s dy^T H
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftcli.kernels.gated import Recipe, recipe_of
from peftcli.kernels.shadow import Shadows


@dataclass(frozen=True)
class Pair:
    """A (r, in) and B (out, r) of an update s B A, as they are trained, and both again in the type to compute in.

    Gradients go to the trained ones, in their own type.
    """

    a: Tensor
    b: Tensor
    a_computed: Tensor
    b_computed: Tensor
    scaling: float


def paired(a: Tensor, b: Tensor, scaling: float, dtype: torch.dtype, shadows: Shadows) -> Pair:
    """A and B with their copies in `dtype`; of a tensor that is itself computed from trained ones the copy is new."""
    copies = {
        name: shadows.of(name, t, dtype) if t.is_leaf else t.detach().to(dtype) for name, t in (("a", a), ("b", b))
    }
    return Pair(a, b, copies["a"], copies["b"], scaling)


def low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, pair: Pair) -> Tensor:
    """x (..., in), weight (out, in) and bias (out,) frozen and of x's type -> (..., out).

    Has no second derivative: asking for one raises torch's RuntimeError.
    """
    result: Tensor = _LowRankLinear.apply(
        x, weight, bias, pair.a, pair.b, pair.a_computed, pair.b_computed, pair.scaling, recipe_of(x)
    )  # type: ignore[no-untyped-call]
    return result


def plain_low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, pair: Pair) -> Tensor:
    """The same as torch puts it together."""
    update = F.linear(F.linear(x.to(pair.a.dtype), pair.a), pair.b) * pair.scaling
    return (F.linear(x, weight, bias) + update).to(x.dtype)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        a_computed: Tensor,
        b_computed: Tensor,
        scaling: float,
        recipe: Recipe | None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (n, in)
        inner = rows @ a_computed.T  # (n, r)
        result = F.linear(rows, weight, bias)
        result.addmm_(inner, b_computed.T, alpha=scaling)
        needs_x, _, _, needs_a, needs_b, *_ = ctx.needs_input_grad
        # x itself and no view of it: autograd then keeps one tensor for all layers that read it
        kept = (x, None) if recipe is None else (recipe.gate, recipe.up)
        ctx.save_for_backward(
            *(kept if needs_a else (None, None)),
            inner if needs_b else None,
            weight if needs_x else None,
            a_computed if needs_x else None,
            b_computed,
        )
        ctx.scaling, ctx.shape = scaling, x.shape
        ctx.activation = None if recipe is None else recipe.activation
        ctx.types = (a.dtype, b.dtype)
        return result.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, up, inner, weight, a, b = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])  # (n, out)
        needs_x, _, _, needs_a, needs_b, *_ = ctx.needs_input_grad
        narrow = (rows @ b).mul_(ctx.scaling) if needs_x or needs_a else None  # (n, r)
        to_x = to_a = to_b = None
        if needs_x:
            assert narrow is not None
            to_x = torch.mm(rows, weight).addmm_(narrow, a).view(ctx.shape)
        if needs_a:
            assert narrow is not None
            if ctx.activation is not None:
                x = Recipe(ctx.activation, x, up).made()
            to_a = (narrow.T @ x.reshape(-1, x.shape[-1])).to(ctx.types[0])
        if needs_b:
            to_b = (inner.T @ rows).T.to(ctx.types[1]).mul_(ctx.scaling)
        return to_x, None, None, to_a, to_b, None, None, None, None
