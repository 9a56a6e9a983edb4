"""Dropouts of an update as a whole: of its outputs, or of everything that one layer adds."""

from __future__ import annotations

import torch
from torch import Tensor


def drops_module(probability: float, training: bool) -> bool:
    """Whether a layer's update is left out this time."""
    return training and probability > 0 and bool(torch.rand(()) < probability)


def drop_outputs(update: Tensor, probability: float, training: bool, *, rescale: bool = False) -> Tensor:
    """Leaves out some outputs (last axis) of an update, the same for all rows; `rescale` keeps the mean size."""
    if not training or probability == 0:
        return update
    kept = (torch.rand(update.shape[-1], device=update.device) > probability).to(update.dtype)
    # at least a trace, where by chance no output is kept
    return update * (kept / kept.mean().clamp_min(1e-6) if rescale else kept)
