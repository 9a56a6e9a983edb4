"""The interface that every task satisfies, free of torch: its facts are read where nothing is trained.

A batch is a plain dict of tensors: the model's arguments, and beside them what the loss needs (`weights`, labels).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from peftcli.data.encode.base import Encoding
    from peftcli.data.rows import Row
    from peftcli.data.store import EncodedRow, TokenStore
    from peftcli.models.heads import LabelHead
    from peftcli.tasks.labels.answers import Prediction
    from peftcli.tasks.labels.labelled import Labelled
    from peftcli.tasks.preferences.scores import Preferences
    from peftcli.tasks.vectors.found import Vectors

Batch = dict[str, "Tensor"]
"""Name -> tensor, (rows, ...)."""
Seeded = Callable[[int, Callable[[], "Tensor"]], "Tensor"]
"""Number of a part and a forward pass -> its answer, computed with the draws and the precision of that part's training."""


class TrainingRow(Protocol):
    """One encoded row on the CPU, as the data room stores it."""

    @property
    def input_ids(self) -> Any:
        """Token ids, (length,)."""

    @property
    def weights(self) -> Any:
        """Loss weight of each token as a target, (length,); 0 is context."""

    @property
    def parts(self) -> Any:
        """Which part of the row each token belongs to, (length,); empty where rows are one part."""

    @property
    def labels(self) -> tuple[Any, ...]:
        """What the row is labelled with."""

    @property
    def reference(self) -> Any:
        """What the model at the start says of the row, (numbers,); empty where it was not asked."""


@dataclass(frozen=True)
class LossSum:
    """A loss that is not yet a mean, so that batches of any cut add up to the same gradient."""

    total: Tensor
    """Sum over targets of weight times negative log-likelihood (nats), a float32 scalar with its graph."""
    weight: float
    """Sum of the weights."""
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> the batch's share in a number of the whole batch: shares of its parts add up. Without a graph."""


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
    """Targets (tokens with a weight above 0, or rows that are labelled as a whole)."""
    labelled: Labelled | None = None
    """What the model says of labelled things; None for a task without labels."""
    preferences: Preferences | None = None
    """What the model makes of compared answers; None for a task without any."""

    vectors: Vectors | None = None
    """One vector of each text; None for a task without any."""

    @property
    def problem(self) -> str | None:
        """What labels mean, or how answers are compared; None where there are neither."""
        if self.preferences is not None:
            return self.preferences.kind
        return None if self.labelled is None else self.labelled.problem


class Task(ABC):
    """What is learned: how rows become a batch, and what is minimised. An instance serves every model; one for a task
    with labels is told them by `with_head`."""

    name: ClassVar[str]
    """As recipes write it, with hyphens."""
    auto_class: ClassVar[str]
    """The transformers auto class that loads the base."""
    task_type: ClassVar[str | None] = None
    """What the reference's `adapter_config.json` calls models of this task."""
    packs_rows: ClassVar[bool] = False
    """Whether `collate_packs` puts several rows into one sequence."""
    pipeline_tag: ClassVar[str | None] = None
    """What the Hugging Face Hub calls models of this task, for the adapter's card; None where it has no word for it."""
    formats: ClassVar[tuple[str, ...]]
    """Formats of rows that it trains on."""
    metric_needs: ClassVar[tuple[str, ...]] = ("losses",)
    """What it gives metrics to read: `losses`, `generations` (written answers), `labels`, `preferences` (rewards of
    compared answers), `likelihoods` (their log-probabilities), `vectors` (of texts)."""
    loss_unit: ClassVar[str] = "nats per token"
    """What its loss is counted in, for people; empty for a number without a unit."""
    rate_factor: ClassVar[float] = 1.0
    """What `learning_rate: auto` is multiplied with: the methods' own rates are those of supervised training."""
    default_metrics: ClassVar[tuple[str, ...]] = ("loss",)
    """What is measured where the recipe does not say."""
    model_inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    """Entries of a batch that are arguments of the model."""
    learns_labels: ClassVar[bool] = False
    """Whether rows are labelled, so that the data decides the size of the model's head, which is trained."""
    streams: ClassVar[bool] = False
    """Whether rows may be read while training: nothing of them has to be known before the structure is built."""
    train_on: ClassVar[str | None] = None
    """What of a row is trained, where that is no choice of the recipe (`data.train_on`)."""
    weighs_thoughts: ClassVar[bool] = False
    """Whether the thoughts before an answer may weigh less than it (`data.thoughts`)."""
    splits_rows: ClassVar[bool] = True
    """Whether a long row may become several."""
    reference_numbers: ClassVar[int] = 0
    """How many numbers the model at the start says of a row."""
    reads_whole_batches: ClassVar[bool] = False
    """Whether `whole_batch` has to tell the parts of an optimizer step anything."""
    options: ClassVar[str | None] = None
    """The section of the recipe that holds its own settings."""
    reads_base: ClassVar[bool] = False
    """Whether `for_base` tells it more than it knows."""
    compares_rows: ClassVar[bool] = False
    """Whether rows of an optimizer batch are compared with each other, so that one row alone teaches nothing."""

    kernels: ClassVar[frozenset[str]] = frozenset()
    """Names of the fast paths that the loss takes where they are on."""

    @property
    def writes(self) -> bool:
        """Whether its models write text."""
        return "generations" in self.metric_needs

    @property
    @abstractmethod
    def encoding(self) -> Encoding:
        """What it makes of a row."""

    def with_options(self, options: Any) -> Task:
        """The task under the recipe's section `options`; itself where it has none."""
        return self

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with the model at the start, which is then asked once of every row: `reference`."""
        return False

    def reference(self, model: nn.Module, batch: Batch) -> np.ndarray:
        """What the model at the start says of the rows of a batch, (rows, numbers) float64; in evaluation mode."""
        raise NotImplementedError(f"{self.name} compares with no other model")

    def arrange(self, rows: TokenStore) -> TokenStore:
        """The rows of a split as they are learned. Raises `DataError` for rows that cannot be."""
        return rows

    def written(self, row: EncodedRow) -> EncodedRow:
        """The row as a prompt and an answer that the model might write to it."""
        return row

    def whole_batch(self, model: nn.Module, parts: Sequence[Batch]) -> Sequence[Batch]:
        """The parts of one optimizer step, each told what its loss has to know of all of them, so that no cut shows.

        Asked before the first of them passes, in evaluation mode and without a graph.
        """
        return parts

    def for_base(self, *folders: Path) -> Task:
        """The task as a base is used. `folders`: of the adapter or the base, the first that says how counts."""
        return self

    @property
    def settled_options(self) -> dict[str, Any]:
        """Dotted recipe keys of its own section that may be `auto`, and what the base made of them; for the lock."""
        return {}

    def files_beside(self, base: Path, width: int) -> dict[str, bytes]:
        """Name -> content of files by which other tools use the model as the task does. `base`: the base's folder;
        `width`: of its hidden states."""
        return {}

    def head_for(self, train: TokenStore, validation: TokenStore | None, base: LabelHead | None) -> LabelHead | None:
        """The labels of a model that learns these rows. `base`: those that the base has been trained for already.

        None for a task without labels. Raises `DataError` for labels that cannot be learned.
        """
        return None

    def require_known(self, rows: TokenStore) -> None:
        """Raises `DataError` for rows with labels that the model does not give."""

    def unlabelled(self, row: Mapping[str, Any]) -> Row:
        """A row whose labels are asked for. Raises `RowFault` for one that cannot be read."""
        raise NotImplementedError

    def told(self, labelled: Labelled) -> list[Prediction]:
        """What was said of each row, for people and files; for tasks with labels."""
        raise NotImplementedError

    def predictions(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """What the model says of each row of a batch; for tasks with labels."""
        labelled = self.score_rows(model, batch).labelled
        assert labelled is not None, "a task with labels scores them"
        return self.told(labelled)

    def vectors(self, model: nn.Module, batch: Batch) -> Tensor:
        """One vector of each text of a batch, (texts, width), as other tools make them; for tasks of vectors."""
        raise NotImplementedError(f"{self.name} makes no vectors")

    def with_head(self, head: LabelHead, train: TokenStore | None = None) -> Task:
        """The task for the labels of a model. `train`: rows to count labels in; None where nothing is trained."""
        return self

    def require_fit(self, model: nn.Module, rows: Sequence[TrainingRow], *, pad_token_id: int, pads: bool) -> None:
        """Asked once of the base before training, in evaluation mode: raises `ModelError` where it cannot do the task.

        `rows`: the longest of the data first. `pads`: whether rows will be padded.
        """

    @abstractmethod
    def collate(self, rows: Sequence[TrainingRow], *, pad_token_id: int) -> Batch:
        """One batch on the CPU. `pad_token_id` only fills; which positions are real is told by their place."""

    def collate_packs(self, packs: Sequence[Sequence[TrainingRow]], *, pad_token_id: int) -> Batch:
        """One batch on the CPU with several rows in each sequence, told apart by `position_ids` that begin anew with each
        row. Asked for only where `packs_rows`."""
        raise NotImplementedError(f"{self.name} does not pack rows")

    def require_rows_apart(self, model: nn.Module, token_ids: Sequence[int]) -> None:
        """Asked before training on packs, in evaluation mode, of the base and again with its adapter: raises `ModelError`
        where a row's answers are not its own in a pack. `token_ids`: a row of the data."""

    def share(self, model: nn.Module, parts: Sequence[Batch], seeded: Seeded) -> Sequence[Batch]:
        """The parts of an optimizer batch with what each has to know of the others, before any of them has its loss.
        Asked for only where `compares_rows`, and where there are several."""
        return parts

    @abstractmethod
    def weigh(self, batch: Batch) -> float:
        """The total loss weight of a collated batch, before its forward pass: `weight` of its `loss`."""

    @abstractmethod
    def targets_in(self, row: TrainingRow) -> int:
        """Targets of a row that carry loss."""

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model answers to a batch, whatever its shape, on the device of the model."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """The summed loss of a batch. Tensors of the batch are moved to the model's device where they are not there."""

    def settled(self, scores: RowScores) -> RowScores:
        """The scores of all rows, once they are together, with what each owes to the others."""
        return scores

    @abstractmethod
    def score_rows(self, model: nn.Module, batch: Batch) -> RowScores:
        """The scores of each row, without a graph; the caller chooses the model's mode."""
