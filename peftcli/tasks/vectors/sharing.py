"""One loss over an optimizer batch that goes through the model in parts (GradCache, arXiv:2101.06983).

First all vectors without a graph, then the loss and its gradient with regard to them, then each part again with its graph,
carrying its share of that gradient. The draws of a part are the same both times, so the result is that of one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from peftcli.tasks.base import Batch, Seeded
from peftcli.tasks.vectors.batches import joined
from peftcli.tasks.vectors.losses import row_losses

GRADIENT, SHARE = "gradient", "share"
"""Entries of a part: of its vectors (texts, width), and of the loss ()."""


def shared(
    model: nn.Module,
    parts: Sequence[Batch],
    embed: Callable[[nn.Module, Batch], Tensor],
    temperature: float,
    seeded: Seeded,
) -> list[Batch]:
    """The parts with what each has to know of the others."""
    with torch.no_grad():
        vectors = [seeded(number, partial(embed, model, part)) for number, part in enumerate(parts)]
    leaf = torch.cat(vectors).requires_grad_()
    with torch.enable_grad():
        losses = row_losses(leaf, joined(parts), temperature)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    gradients = gradient.split([len(each) for each in vectors])
    shares = losses.detach().split([len(part["score"]) for part in parts])
    return [
        {**part, GRADIENT: its, SHARE: loss.sum()} for part, its, loss in zip(parts, gradients, shares, strict=True)
    ]


def carried(vectors: Tensor, part: Batch) -> Tensor:
    """A scalar with the value of a part's share of the loss, and the gradient that was handed to it."""
    along = (vectors * part[GRADIENT]).sum()
    # zero, exactly, with the gradient of `along`
    return part[SHARE] + (along - along.detach())
