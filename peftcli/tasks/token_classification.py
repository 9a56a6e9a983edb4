"""Tell the tag of each word: the first token of a word speaks for it."""

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
class TokenClassification(Task):
    """Cross entropy of the tags of words, the mean over words."""

    name: ClassVar[str] = "token-classification"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    task_type: ClassVar[str | None] = "TOKEN_CLS"
    pipeline_tag: ClassVar[str | None] = "token-classification"
    formats: ClassVar[tuple[str, ...]] = ("token-classification",)
    loss_unit: ClassVar[str] = "nats per word"
    metric_needs: ClassVar[tuple[str, ...]] = ("losses", "labels")
    default_metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "f1_macro")
    learns_labels: ClassVar[bool] = True
    options: ClassVar[str | None] = "classification"

    settings: ClassificationConfig = field(default_factory=ClassificationConfig)
    head: LabelHead | None = None
    class_weights: np.ndarray | None = None

    @property
    def encoding(self) -> Encoding:
        from peftcli.data.encode.base import Encoding
        from peftcli.data.encode.tagged import encode_tagged, keep_words
        from peftcli.data.rows import TagRow

        return Encoding(self.name, {TagRow: encode_tagged}, keep=keep_words)

    def with_options(self, options: Any) -> Task:
        return replace(self, settings=options)

    def head_for(self, train: TokenStore, validation: TokenStore | None, base: LabelHead | None) -> LabelHead | None:
        from peftcli.tasks.labels.vocabulary import head_of_tags

        return head_of_tags(train, validation, base)

    def require_known(self, rows: TokenStore) -> None:
        from peftcli.tasks.labels.vocabulary import require_known_tags

        require_known_tags(rows, self._head)

    def unlabelled(self, row: Mapping[str, Any]) -> Row:
        from peftcli.data.faults import RowFault
        from peftcli.data.rows import TagRow

        words = row.get("tokens", row.get("text"))
        words = words.split() if isinstance(words, str) else words
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise RowFault("the row has neither `tokens` (a list of words) nor `text`")
        return TagRow(tuple(words), ())

    def told(self, labelled: Labelled) -> list[Prediction]:
        from peftcli.tasks.labels.words import predictions

        return predictions(labelled)

    def with_head(self, head: LabelHead, train: TokenStore | None = None) -> Task:
        import numpy as np

        from peftcli.tasks.labels.class_weights import class_weights
        from peftcli.tasks.labels.vocabulary import output_of

        weights = None
        if train is not None and self.settings.class_weights is not None:
            outputs = [output_of(tag, head) or 0 for row in range(len(train)) for tag in train.labels(row)]
            counts = np.bincount(outputs, minlength=len(head.names)).astype(np.float64)
            weights = class_weights(self.settings.class_weights, head, counts, len(outputs))
        return replace(self, head=head, class_weights=weights)

    def require_fit(self, model: nn.Module, rows: Sequence[TrainingRow], *, pad_token_id: int, pads: bool) -> None:
        from peftcli.tasks.row_checks import require_rows_answered

        require_rows_answered(self, model, rows, pad_token_id=pad_token_id, pads=pads)

    @property
    def _head(self) -> LabelHead:
        assert self.head is not None, "told the tags before any row is collated"
        return self.head

    @property
    def _loss(self) -> LabelLoss:
        """As in training."""
        import torch

        from peftcli.models.heads import SINGLE
        from peftcli.tasks.labels.losses import LabelLoss

        weights = None if self.class_weights is None else torch.from_numpy(self.class_weights)
        return LabelLoss(SINGLE, weights, self.settings.label_smoothing, self.settings.focal_gamma)

    def collate(self, rows: Sequence[TrainingRow], *, pad_token_id: int) -> Batch:
        """`input_ids`, `attention_mask`, `token_type_ids`, `weights` and `tags`, all (rows, longest)."""
        from peftcli.tasks.labels import words

        return words.collate(rows, self._head, pad_token_id=pad_token_id)

    def weigh(self, batch: Batch) -> float:
        weights = batch["weights"].double()
        if self._loss.class_weights is not None:
            weights = weights * self._loss.class_weights.to(weights)[batch["tags"]]
        return float(weights.sum())

    def targets_in(self, row: TrainingRow) -> int:
        return sum(bool(weight) for weight in row.weights.tolist())

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(rows, longest, tags)"""
        from peftcli.tasks.labels.reading import token_logits

        return token_logits(model, batch)

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        from peftcli.tasks.labels import words

        return words.loss(model, batch, self._head, self._loss, self.weigh(batch))

    def score_rows(self, model: nn.Module, batch: Batch) -> RowScores:
        from peftcli.tasks.labels import words

        return words.score_rows(model, batch, self._head)


TASK = TokenClassification()
