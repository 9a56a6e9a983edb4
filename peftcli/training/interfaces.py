"""What the loop needs from its neighbours, handed in: this room knows no method, task or data format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from peftcli.tasks.base import Batch, Seeded, TrainingRow

Metrics = dict[str, float]
"""Reported name -> value."""


class Loss(Protocol):
    """A loss summed over the targets of a micro-batch."""

    @property
    def total(self) -> Tensor:
        """Sum over targets of weight times negative log-likelihood, a scalar with its graph."""

    @property
    def weight(self) -> float:
        """Sum of the weights, counted on the CPU."""

    @property
    def facts(self) -> Mapping[str, Tensor]:
        """Shares of a micro-batch in numbers of the whole batch; they add up."""


class Order(Protocol):
    """The order of rows, a pure function of seed, epoch and index."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch, with a last smaller one."""

    def batch(self, epoch: int, index: int) -> np.ndarray:
        """Row numbers of one optimizer batch."""


class Trainable(Protocol):
    """The adapter as the loop sees it."""

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for a torch optimizer: `params`, `lr` (its peak) and `weight_decay`."""

    def decays(self, parameter: nn.Parameter) -> bool:
        """Whether weight decay acts on one of these tensors."""

    def trainable_parameters(self) -> Mapping[str, nn.Parameter]:
        """Every tensor that is trained, under names that stay the same."""

    def after_step(self, step: int, total_steps: int) -> None:
        """Called after each optimizer step, counted from 1, while the gradients are still there."""

    def extra_loss(self) -> Tensor | None:
        """A scalar that is added once to the loss of an optimizer step; asked for after each forward pass."""

    def state(self) -> dict[str, Tensor]:
        """Every tensor that resuming needs, trainable or not, under names that stay the same."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state` gave, in place."""

    def set_training(self, training: bool) -> None:
        """Switches dropout of the adapter (the loop switches the model's own modules before)."""


class Emit(Protocol):
    """Receives one event of `metrics.jsonl`."""

    def __call__(self, event: str, step: int, **facts: Any) -> None: ...


GetRows = Callable[[Sequence[int]], Sequence[TrainingRow]]
"""Row numbers to encoded rows, in the order asked for."""
Collate = Callable[[Sequence[Any]], Batch]
"""Rows to one padded batch on the CPU."""
WholeBatch = Callable[[Any, Sequence[Batch]], Sequence[Batch]]
"""Model and the parts of an optimizer step to these parts, each told what its loss has to know of all of them."""
Pack = Callable[[Sequence[Any], int], Sequence[Batch]]
"""Rows of an optimizer step, longest first, and how many sequences go into a forward pass -> packed batches on the CPU."""
Share = Callable[[Any, Sequence[Batch], Seeded], Sequence[Batch]]
"""Model, parts of an optimizer batch, and what runs a forward pass as in training -> the parts as their losses are taken."""
ComputeLoss = Callable[[Any, Batch], Loss]
"""Model and batch to a loss that is a sum, with the weight to divide by."""
Evaluate = Callable[[int], Metrics]
"""Called with the step; returns the metrics at it."""
KeepBatch = Callable[[int, Sequence[int], Sequence[Any]], str | None]
"""Called with a step, its row numbers and its rows; returns where they were kept, None where they were not."""


def parts_alone(model: Any, parts: Sequence[Batch]) -> Sequence[Batch]:
    """For losses that need to know nothing of the other parts of a batch."""
    return parts


def target_weight(batch: Batch) -> float:
    """Sum of the loss weights of a collated batch, (batch, seq); the first column is never a target."""
    # summed in float64: weights of a million tokens lose their last digits in float32
    return float(batch["weights"][:, 1:].double().sum())


def next_targets(row: TrainingRow) -> int:
    """Tokens of a row that carry loss, where each is predicted from the one before it."""
    return int(np.count_nonzero(np.asarray(row.weights)[1:]))
