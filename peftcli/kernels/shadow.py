"""Trained tensors in the type that is computed in: float32 masters, and copies that are made once a step."""

from __future__ import annotations

import torch
from torch import Tensor

from peftcli.kernels.active import current_step

Identity = tuple[int, int, int, torch.dtype]


class Shadows:
    """Copies of one layer's trained tensors, by name.

    A copy is as old as the step at most, and never older than its master: what is written in place counts up the
    master's version, and what is written past that (`.data`, memory of another library) is written between the steps.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Identity, Tensor]] = {}

    def of(self, name: str, master: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor in `dtype`, detached; the master itself where that is its type."""
        if master.dtype == dtype:
            return master.detach()
        identity = (current_step(), master._version, master.data_ptr(), dtype)
        kept = self._kept.get(name)
        if kept is None or kept[0] != identity:
            # a new tensor each time: a backward pass may still hold the former one
            kept = self._kept[name] = (identity, master.detach().to(dtype))
        return kept[1]
