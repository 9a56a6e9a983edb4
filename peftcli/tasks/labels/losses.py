"""Losses of labels: summed over things that are labelled, with the weight to divide by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from peftcli.models.heads import MEASURED, SEVERAL


@dataclass(frozen=True)
class LabelLoss:
    """`class_weights`: of each label, (labels,); None weighs all alike. `smoothing`: share of the target that is spread
    over all labels. `focal_gamma`: arXiv:1708.02002, eq. 4; 0 is the plain loss."""

    problem: str
    class_weights: Tensor | None = None
    smoothing: float = 0.0
    focal_gamma: float = 0.0

    def weights(self, truth: Tensor) -> Tensor:
        """The weight of each thing, (things,): that of its label, where one applies and labels have weights."""
        if self.class_weights is None or self.problem in (SEVERAL, MEASURED):
            return torch.ones(len(truth))
        return truth @ self.class_weights

    def each(self, logits: Tensor, truth: Tensor) -> Tensor:
        """The loss of each thing, (things,), its weight included. `logits`, `truth`: (things, labels), float32."""
        if self.problem == MEASURED:
            return functional.mse_loss(logits, truth, reduction="none").mean(dim=-1)
        if self.problem == SEVERAL:
            return self._several(logits, truth)
        return self._single(logits, truth)

    def _single(self, logits: Tensor, truth: Tensor) -> Tensor:
        log_probabilities = functional.log_softmax(logits, dim=-1)
        nll = -(truth * log_probabilities).sum(dim=-1)
        if self.focal_gamma:
            nll = (1.0 - (-nll).exp()).clamp_min(0.0) ** self.focal_gamma * nll
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        weighted = nll if weights is None else nll * (truth @ weights)
        if not self.smoothing:
            return weighted
        spread = -(log_probabilities if weights is None else log_probabilities * weights).sum(dim=-1)
        return (1.0 - self.smoothing) * weighted + self.smoothing / logits.shape[-1] * spread

    def _several(self, logits: Tensor, truth: Tensor) -> Tensor:
        target = truth * (1.0 - self.smoothing) + 0.5 * self.smoothing
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        found = functional.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=weights)
        if self.focal_gamma:
            likely = logits.sigmoid()
            found = (1.0 - (truth * likely + (1.0 - truth) * (1.0 - likely))) ** self.focal_gamma * found
        return found.mean(dim=-1)


def scores_of(logits: Tensor, problem: str) -> Tensor:
    """Probabilities of labels, or the values where they are measured: float64, on the CPU."""
    wide = logits.double()
    if problem == MEASURED:
        return wide.cpu()
    return (wide.sigmoid() if problem == SEVERAL else wide.softmax(dim=-1)).cpu()
