"""Head and loss of the tokens that carry loss, chunk by chunk: no more logits than those of one chunk ever exist.

The loss is a sum, so its gradient by the hidden states is computed with each chunk, for a factor of one, and only
multiplied by the factor that comes in the backward pass. So are the gradients of what is trained in the head itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 1 << 23
"""Logits of one chunk (32 MiB in float32) where that is no fewer rows than `LEAST_ROWS`."""
LEAST_ROWS = 256
"""A product of fewer rows costs as much as one of these."""


@dataclass(frozen=True)
class Head:
    """What a model does with hidden states after its last layer."""

    logits: Callable[[Tensor], Tensor]
    """Hidden states (rows, hidden) to logits (rows, vocab), each row by itself."""
    trained: Sequence[Tensor]
    """Trained tensors that take part in it."""
    vocabulary: int


Nll = Callable[[Tensor, Tensor], Tensor]
"""Logits (rows, vocab) and tokens (rows,) to what each token costs, (rows,)."""


def label_loss(hidden: Tensor, tokens: Tensor, weights: Tensor, head: Head, nll: Nll) -> Tensor:
    """Sum of weight times negative log-likelihood, a float32 scalar. hidden (rows, hidden), tokens and weights (rows,).

    Has no second derivative: asking for one raises torch's RuntimeError.
    """
    total: Tensor = _LabelLoss.apply(hidden, tokens, weights, head, nll, *head.trained)  # type: ignore[no-untyped-call]
    return total


def plain_label_loss(hidden: Tensor, tokens: Tensor, weights: Tensor, head: Head, nll: Nll) -> Tensor:
    """The same with all logits at once."""
    return (nll(head.logits(hidden), tokens) * weights).sum()


def chunks(num_rows: int, vocabulary: int, elements: int | None = None) -> list[slice]:
    """Rows of each chunk: as many as have `elements` logits (default `CHUNK_ELEMENTS`), at least `LEAST_ROWS`."""
    size = max(LEAST_ROWS, (elements or CHUNK_ELEMENTS) // max(1, vocabulary))
    return [slice(start, start + size) for start in range(0, num_rows, size)]


class _LabelLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, tokens: Tensor, weights: Tensor, head: Head, nll: Nll, *trained: Tensor
    ) -> Tensor:
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_trained: list[Tensor | None] = [None] * len(trained)
        total: Tensor | None = None
        for rows in chunks(len(hidden), head.vocabulary):
            with torch.enable_grad():
                part = hidden[rows].detach().requires_grad_(to_hidden is not None)
                loss = plain_label_loss(part, tokens[rows], weights[rows], head, nll)
            wanted = [*([] if to_hidden is None else [part]), *head.trained]
            found = list(torch.autograd.grad(loss, wanted, allow_unused=True)) if wanted else []
            if to_hidden is not None:
                to_hidden[rows] = found.pop(0)
            to_trained = [_sum(before, now) for before, now in zip(to_trained, found, strict=True)]
            total = loss.detach() if total is None else total.add_(loss.detach())
        ctx.save_for_backward(to_hidden, *to_trained)
        return weights.new_zeros(()) if total is None else total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_hidden, *to_trained = (
            None if found is None else found * gradient.to(found.dtype) for found in ctx.saved_tensors
        )
        return to_hidden, None, None, None, None, *to_trained


def _sum(before: Tensor | None, now: Tensor | None) -> Tensor | None:
    return now if before is None else before if now is None else before.add_(now)
