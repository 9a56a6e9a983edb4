"""Negative log-likelihood of given tokens, in float32, with memory bounded by chunks of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 1 << 26
"""Elements of the largest float32 temporary (256 MiB): 2048 rows of a vocabulary of 32k."""


class _TokenNll(torch.autograd.Function):
    """-log softmax(logits)[target] a row. Saves the logits in their own type and one number a row.

    The gradient (softmax - one-hot) * g is written chunk by chunk, so no float32 copy of all logits ever exists.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        normalizers = torch.empty(logits.shape[0], dtype=wide, device=logits.device)
        chosen = torch.empty_like(normalizers)
        for rows in _chunks(logits):
            values = logits[rows].to(wide)
            torch.logsumexp(values, dim=-1, out=normalizers[rows])
            chosen[rows] = values.gather(1, targets[rows, None]).squeeze(1)
        ctx.save_for_backward(logits, targets, normalizers)
        return normalizers - chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets, normalizers = ctx.saved_tensors
        result = torch.empty_like(logits)
        for rows in _chunks(logits):
            values = logits[rows].to(normalizers.dtype) - normalizers[rows, None]
            values.exp_()
            at_target = targets[rows, None]  # one a row, so a plain write is exact and repeatable on every device
            values.scatter_(1, at_target, values.gather(1, at_target) - 1.0)
            result[rows] = values.mul_(gradient[rows, None])
        return result, None


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood (nats) of `targets` (rows,) under `logits` (rows, vocab); float32 or wider, (rows,)."""
    nll: Tensor = _TokenNll.apply(logits, targets)  # type: ignore[no-untyped-call]
    return nll


def _chunks(logits: Tensor) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // max(1, logits.shape[1]))
    return [slice(start, start + size) for start in range(0, logits.shape[0], size)]
