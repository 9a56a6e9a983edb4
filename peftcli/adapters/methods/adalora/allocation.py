"""How AdaLoRA gives out ranks (arXiv:2303.10512, eq. 8-12): importance, budget, and which triplets are left.

Importance of a number p: its sensitivity |p dL/dp|, smoothed, times the smoothed uncertainty of that. A triplet's score
is that of its E plus the means over its row of A and its column of B. Over all layers together the lowest scores are
masked (E set to zero) until the budget of the step is met; a masked triplet may come back until pruning ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peftcli.adapters.methods.adalora.config import AdaloraConfig
from peftcli.adapters.methods.adalora.layer import AdaloraLinear

# shares for steps that the recipe leaves open: a tenth to warm up, the last three tenths with the ranks settled
TINIT_SHARE = 0.1
TFINAL_SHARE = 0.3


@dataclass(frozen=True)
class Schedule:
    """When ranks are pruned; steps are counted from 0, as in the reference."""

    tinit: int
    tfinal: int
    delta_t: int
    total: int

    @classmethod
    def of(cls, config: AdaloraConfig, total_steps: int) -> Schedule:
        """The configuration's schedule for a run; open times are shares of it."""
        total = config.total_step or total_steps
        tinit = config.tinit if config.tinit is not None else int(total * TINIT_SHARE)
        tfinal = config.tfinal if config.tfinal is not None else int(total * TFINAL_SHARE)
        return cls(tinit, tfinal, config.deltaT, total)

    @property
    def end(self) -> int:
        """The step at which what is left is settled."""
        # a run may be shorter than its last part
        return max(self.total - self.tfinal, 0)

    def budget(self, step: int, start: int, target: int) -> int:
        """Triplets left after a step, between `start` and `target` (cubic descent)."""
        if step <= self.tinit:
            return start
        if step >= self.end:
            return target
        left = 1.0 - (step - self.tinit) / (self.end - self.tinit)
        return int((start - target) * left**3 + target)

    def prunes(self, step: int) -> bool:
        """Whether a step prunes again."""
        return step == self.end or (self.tinit < step < self.end and step % self.delta_t == 0)


class Importance:
    """Smoothed sensitivity and uncertainty of every number of one layer, kept with the run's state."""

    def __init__(self, layer: AdaloraLinear) -> None:
        self.sensitivity = {name: torch.zeros_like(tensor) for name, tensor in layer.tensors().items()}
        self.uncertainty = {name: torch.zeros_like(tensor) for name, tensor in layer.tensors().items()}

    @torch.no_grad()
    def update(self, layer: AdaloraLinear, beta1: float, beta2: float) -> None:
        """Takes in one step's gradients."""
        for name, tensor in layer.tensors().items():
            if tensor.grad is None:
                continue
            now = (tensor * tensor.grad).abs()
            sensitivity, uncertainty = self.sensitivity[name], self.uncertainty[name]
            sensitivity.mul_(beta1).add_(now, alpha=1 - beta1)
            uncertainty.mul_(beta2).add_((now - sensitivity).abs(), alpha=1 - beta2)

    def scores(self) -> Tensor:
        """One score for each triplet, (r,)."""
        product = {name: self.sensitivity[name] * self.uncertainty[name] for name in self.sensitivity}
        return product["lora_E"].flatten() + product["lora_A"].mean(1) + product["lora_B"].mean(0)


@torch.no_grad()
def mask_lowest(layers: Sequence[AdaloraLinear], scores: Sequence[Tensor], kept: int) -> list[Tensor]:
    """Zeroes the E of all but the `kept` highest scores; returns which are left, a boolean (r,) for each layer."""
    every = torch.cat(list(scores))
    dropped = len(every) - kept
    if dropped < 1:
        return [torch.ones_like(score, dtype=torch.bool) for score in scores]
    threshold = every.sort().values[dropped - 1]  # `kthvalue` is not deterministic on a GPU
    left = [score > threshold for score in scores]
    for layer, mask in zip(layers, left, strict=True):
        apply_mask(layer, mask)
    return left


@torch.no_grad()
def apply_mask(layer: AdaloraLinear, mask: Tensor) -> None:
    """Zeroes E where the mask is false."""
    layer.lora_E.masked_fill_(~mask[:, None], 0.0)
