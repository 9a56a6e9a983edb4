"""The product with a packed weight as its values say it, where the library that packed it computes something else.

8 bits: LLM.int8() (arXiv:2208.07339) rounds the inputs too, and which of their columns it spares hangs on the other tokens
of the batch: a token's answer would depend on those after it, on padding and on the batch size, and gradients would not
be those of the weights.

4 bits on a CPU: bitsandbytes dequantizes a matrix row by row there, and takes wrong scales where a block of 64 numbers
runs from one row into the next (its rows are no multiple of 64 long).

Here a weight is dequantized for its product and forgotten; in the backward pass once more.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.models.storage import FourBit, storage_of


class _Product(torch.autograd.Function):
    """x W^T for the frozen weight of a module; keeps no dense weight and no input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        ctx.module = module
        return F.linear(x, _dense(module, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ _dense(ctx.module, gradient.dtype), None


def _dense(module: nn.Module, dtype: torch.dtype) -> Tensor:
    return storage_of(module).dense(module).to(dtype)


@functools.cache
def _exact(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        compute: torch.dtype = getattr(self, "compute_dtype", None) or x.dtype
        found: Tensor = _Product.apply(x.to(compute), self)  # type: ignore[no-untyped-call]
        bias = self._parameters.get("bias")
        return (found if bias is None else found + bias.to(compute)).to(x.dtype)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def multiply_exactly(module: nn.Module) -> None:
    """Lets a packed layer of bitsandbytes multiply by what it stores, where its own forward does otherwise; what it stores
    and how it is saved stays."""
    storage = storage_of(module)
    if isinstance(storage, FourBit):
        if storage.device(module).type != "cpu" or not storage.runs_over_rows(module):
            return
        storage.read_by_blocks(module)
    kind: Any = type(module)
    module.__class__ = _exact(kind)
