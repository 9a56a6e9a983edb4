"""Where virtual tokens stand in a batch: right before the first real token of each row.

    padded right   [p p p a b c . .]        in front of the whole row
    padded left    [. . p p p a b c]        after the padding

so that a padded row reads what its unpadded run reads. With the padding between prompt and text the prompt would leave
a sliding window, and a state would forget it on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftcli.errors import AdapterError


@dataclass(frozen=True)
class Placement:
    """`n` virtual tokens among the columns of a batch."""

    n: int
    order: Tensor | None = None
    """(batch, n + length): the column of [prompt; row] that stands at each place. None: the prompt is in front."""
    real: Tensor | None = None
    """(batch, length): the place where each column of the row stands."""

    def placed(self, joined: Tensor, dim: int = 1) -> Tensor:
        """[prompt; row] along `dim` with the prompt at its place. Dimensions before `dim` end in the batch, or begin
        with it."""
        if self.order is None:
            return joined
        return _gathered(joined, self.order, dim)

    def rows(self, placed: Tensor, dim: int = 1) -> Tensor:
        """The columns of the row alone, as they stood."""
        if self.real is None:
            return placed.narrow(dim, self.n, placed.shape[dim] - self.n)
        return _gathered(placed, self.real, dim)

    def mask(self, mask: Tensor) -> Tensor:
        """(batch, length) -> (batch, n + length), ones for the prompt, in the mask's own type."""
        return self.placed(torch.cat([mask.new_ones(mask.shape[0], self.n), mask], dim=1))


def _gathered(values: Tensor, columns: Tensor, dim: int) -> Tensor:
    """Columns of `values` along `dim`; their batch is the first dimension, or the one before `dim` where that is last."""
    last = dim in (-1, values.dim() - 1)
    lead = values.dim() - 2 if last else 0
    shape = [1] * values.dim()
    shape[lead], shape[dim] = columns.shape
    wanted = list(values.shape)
    wanted[lead], wanted[dim] = columns.shape
    source = list(values.shape)
    source[lead] = columns.shape[0]
    return values.expand(source).gather(dim, columns.view(shape).expand(wanted))


def placement(mask: Tensor | None, n: int) -> Placement:
    """Where `n` virtual tokens go before rows with this mask (batch, length); None: rows without padding.

    Raises `AdapterError` for a mask of another shape.
    """
    padding = None if mask is None else leading_padding(mask)
    if mask is None or padding is None:
        return Placement(n)
    length = mask.shape[1]
    column = torch.arange(n + length, device=mask.device).expand(mask.shape[0], -1)
    # columns of padding stay, then the prompt, then the row; `column` counts along [prompt; row]
    inner = torch.where(column < padding + n, column - padding, column)
    order = torch.where(column < padding, column + n, inner)
    own = column[:, :length]
    return Placement(n, order, torch.where(own < padding, own, own + n))


def leading_padding(mask: Any) -> Tensor | None:
    """(batch, 1): how many columns of padding each row begins with; None where no row does."""
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        found = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise AdapterError(
            f"prompt methods need a mask of (batch, length), got {found}",
            fix="pass the plain attention mask, and generate with the default (dynamic) cache",
        )
    # zeros before the first one: the sum is still zero there
    padding = (mask.long().cumsum(dim=1) == 0).sum(dim=1, keepdim=True)
    return padding if bool(padding.any()) else None
