"""The interface that every task satisfies.

A batch is a plain dict of tensors. Its `weights` stay with the batch, (batch, seq): the loss weight of each token *as a
target*, so that the model's prediction at position t is scored against token t + 1 with `weights[:, t + 1]`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

Batch = dict[str, Tensor]
"""Name of a model's argument -> tensor, (rows, ...)."""


class TrainingRow(Protocol):
    """One encoded row on the CPU, as the data room stores it."""

    @property
    def input_ids(self) -> Any:
        """Token ids, (length,)."""

    @property
    def weights(self) -> Any:
        """Loss weight of each token as a target, (length,); 0 is context."""


@dataclass(frozen=True)
class LossSum:
    """A loss that is not yet a mean, so that batches of any cut add up to the same gradient."""

    total: Tensor
    """Sum over targets of weight times negative log-likelihood (nats), a float32 scalar with its graph."""
    weight: float
    """Sum of the weights."""


@dataclass(frozen=True)
class RowScores:
    """What evaluation needs of each row; arrays of float64, (rows,)."""

    sums: np.ndarray
    """Sum over targets of weight times negative log-likelihood, in nats."""
    weights: np.ndarray
    """Sum of the weights."""
    correct: np.ndarray
    """Targets that the model ranks first."""
    targets: np.ndarray
    """Targets (tokens with a weight above 0)."""


class Task(ABC):
    """How rows become a batch, and what is minimised. Stateless: one instance serves every model."""

    name: ClassVar[str]
    """As recipes write it, with hyphens."""
    auto_class: ClassVar[str]
    """The transformers auto class that loads the base."""
    pipeline_tag: ClassVar[str | None] = None
    """What the Hugging Face Hub calls models of this task, for the adapter's card; None where it has no word for it."""

    def require_fit(self, model: nn.Module, token_ids: Sequence[int], *, pad_token_id: int, pads: bool) -> None:
        """Asked once of the base before training, in evaluation mode: raises `ModelError` where it cannot do the task.

        `token_ids`: a row of the data. `pads`: whether rows will be padded.
        """

    @abstractmethod
    def collate(self, rows: Sequence[TrainingRow], *, pad_token_id: int) -> Batch:
        """One batch on the CPU. `pad_token_id` only fills; which positions are real is told by their place."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """The summed loss of a batch. Tensors of the batch are moved to the model's device where they are not there."""

    @abstractmethod
    def score_rows(self, model: nn.Module, batch: Batch) -> RowScores:
        """The scores of each row, without a graph; the caller chooses the model's mode."""
