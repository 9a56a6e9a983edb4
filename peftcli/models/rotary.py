"""Rotary positions of a base, as a turn of keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def turned_back(model: nn.Module, keys: Tensor, positions: int) -> Tensor | None:
    """Keys (..., head_dim) turned back by a number of positions: R(-positions) k (arXiv:2104.09864, eq. 34).

    In the layout of most families, the first half of a head's channels beside the second. None where the model has no
    rotary positions, or turns a part of the channels only.
    """
    found = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "rotary_emb"]
    frequencies = getattr(found[0], "inv_freq", None) if found else None
    half = keys.shape[-1] // 2
    if not isinstance(frequencies, Tensor) or frequencies.shape != (half,):
        return None
    angles = positions * frequencies.double()
    cosine, sine = angles.cos(), angles.sin()
    first, second = keys.double()[..., :half], keys.double()[..., half:]
    turned = torch.cat([first * cosine + second * sine, second * cosine - first * sine], dim=-1)
    return turned.to(keys.dtype)
