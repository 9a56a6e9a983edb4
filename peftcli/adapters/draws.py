"""Random start values, drawn on the CPU from a generator of the adapter's own, so that every device starts alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def kaiming_uniform(shape: Sequence[int], generator: torch.Generator, *, gain: float | None = None) -> Tensor:
    """U(-bound, bound), bound = gain sqrt(3 / fan_in); without a gain 1 / sqrt(fan_in), as nn.Linear draws."""
    # the layout is (out, in): the inputs of a row are its second dimension
    bound = 1.0 / math.sqrt(shape[1]) if gain is None else math.sqrt(3.0) * (gain / math.sqrt(shape[1]))
    return torch.empty(tuple(shape)).uniform_(-bound, bound, generator=generator)
