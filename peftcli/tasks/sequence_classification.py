"""Tell the label of a text, or of two: one label, any number of them, or a measured value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from peftcli.tasks.base import Batch, LossSum, RowScores, Task, TrainingRow
from peftcli.tasks.config import ClassificationConfig

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from peftcli.data.encode.base import Encoding
    from peftcli.data.rows import Row
    from peftcli.data.store import TokenStore
    from peftcli.models.heads import LabelHead
    from peftcli.tasks.labels.answers import Prediction
    from peftcli.tasks.labels.labelled import Labelled
    from peftcli.tasks.labels.losses import LabelLoss


@dataclass(frozen=True)
class SequenceClassification(Task):
    """Cross entropy of the row's label, binary cross entropy of each label, or squared error: the mean over rows."""

    name: ClassVar[str] = "sequence-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    task_type: ClassVar[str | None] = "SEQ_CLS"
    pipeline_tag: ClassVar[str | None] = "text-classification"
    formats: ClassVar[tuple[str, ...]] = ("classification",)
    loss_unit: ClassVar[str] = "per row"
    metric_needs: ClassVar[tuple[str, ...]] = ("losses", "labels")
    default_metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    model_inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "token_type_ids")
    learns_labels: ClassVar[bool] = True
    options: ClassVar[str | None] = "classification"

    settings: ClassificationConfig = field(default_factory=ClassificationConfig)
    head: LabelHead | None = None
    class_weights: np.ndarray | None = None

    @property
    def encoding(self) -> Encoding:
        from peftcli.data.encode.base import Encoding
        from peftcli.data.encode.labelled import encode_labelled
        from peftcli.data.parts import keep_texts
        from peftcli.data.rows import LabelRow

        return Encoding(self.name, {LabelRow: encode_labelled}, keep=keep_texts, by_class=True)

    def with_options(self, options: Any) -> Task:
        return replace(self, settings=options)

    def head_for(self, train: TokenStore, validation: TokenStore | None, base: LabelHead | None) -> LabelHead | None:
        from peftcli.tasks.labels.vocabulary import head_of

        return head_of(train, validation, base, self.settings.problem)

    def require_known(self, rows: TokenStore) -> None:
        from peftcli.tasks.labels.vocabulary import require_known

        assert self.head is not None, "told the labels of the model"
        require_known(rows, self.head)

    def unlabelled(self, row: Mapping[str, Any]) -> Row:
        from peftcli.data.columns import filled_text, optional_text
        from peftcli.data.rows import LabelRow

        return LabelRow(filled_text(row, "text"), optional_text(row, "text_pair") or None, ())

    def told(self, labelled: Labelled) -> list[Prediction]:
        from peftcli.tasks.labels.answers import whole_rows

        return whole_rows(labelled)

    def with_head(self, head: LabelHead, train: TokenStore | None = None) -> Task:
        from peftcli.tasks.labels.class_weights import class_weights, label_counts

        weights = None
        if train is not None and self.settings.class_weights is not None:
            counts = label_counts([train.labels(row) for row in range(len(train))], head)
            weights = class_weights(self.settings.class_weights, head, counts, len(train))
        return replace(self, head=head, class_weights=weights)

    def require_fit(self, model: nn.Module, rows: Sequence[TrainingRow], *, pad_token_id: int, pads: bool) -> None:
        from peftcli.tasks.row_checks import require_rows_answered

        require_rows_answered(self, model, rows, pad_token_id=pad_token_id, pads=pads)

    def collate(self, rows: Sequence[TrainingRow], *, pad_token_id: int) -> Batch:
        """`input_ids`, `attention_mask`, `token_type_ids` (rows, longest); `truth` (rows, labels), `weights` (rows,)."""
        import numpy as np
        import torch

        from peftcli.tasks.labels.reading import framed
        from peftcli.tasks.labels.vocabulary import truth_of

        assert self.head is not None, "told the labels before any row is collated"
        truth = torch.from_numpy(np.stack([truth_of(row.labels, self.head) for row in rows]))
        return {**framed(rows, pad_token_id=pad_token_id), "truth": truth, "weights": self._loss.weights(truth)}

    @property
    def _loss(self) -> LabelLoss:
        """As in training."""
        import torch

        from peftcli.tasks.labels.losses import LabelLoss

        weights = None if self.class_weights is None else torch.from_numpy(self.class_weights)
        return LabelLoss(self._problem, weights, self.settings.label_smoothing, self.settings.focal_gamma)

    @property
    def _problem(self) -> str:
        from peftcli.models.heads import SINGLE

        assert self.head is not None, "told the labels before anything is computed"
        return self.head.problem or SINGLE

    def weigh(self, batch: Batch) -> float:
        return float(batch["weights"].double().sum())

    def targets_in(self, row: TrainingRow) -> int:
        return 1

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(rows, labels)"""
        from peftcli.tasks.labels.reading import row_logits

        return row_logits(model, batch)

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        logits = self.logits(model, batch)
        return LossSum(self._loss.each(logits, batch["truth"].to(logits.device)).sum(), self.weigh(batch))

    def score_rows(self, model: nn.Module, batch: Batch) -> RowScores:
        """The plain loss, whatever training adds to it, and what the model says of each row."""
        import numpy as np
        import torch

        from peftcli.tasks.labels.labelled import Labelled
        from peftcli.tasks.labels.losses import LabelLoss, scores_of

        assert self.head is not None, "told the labels before anything is scored"
        with torch.no_grad():
            logits = self.logits(model, batch)
            each = LabelLoss(self._problem).each(logits, batch["truth"].to(logits.device))
        rows, truth = len(logits), batch["truth"].double().cpu().numpy()
        found = Labelled(
            self.head.names, self._problem, np.arange(rows), scores_of(logits, self._problem).numpy(), truth, rows
        )
        right = (found.said == truth).all(axis=1)
        return RowScores(each.double().cpu().numpy(), np.ones(rows), right.astype(np.float64), np.ones(rows), found)


TASK = SequenceClassification()
