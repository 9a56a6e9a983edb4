"""Grant answers a reward: a scalar head trained on pairs of a better and a worse answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from peftcli.tasks.base import Batch, LossSum, RowScores, Task, TrainingRow
from peftcli.tasks.preference_config import RewardConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.data.encode.base import Encoding
    from peftcli.data.store import TokenStore
    from peftcli.models.heads import LabelHead


@dataclass(frozen=True)
class Reward(Task):
    """-log sigmoid(r_c - r_r), the mean over pairs, and a term that holds the mean reward at zero: Bradley and Terry 1952,
    arXiv:2312.09244, eq. 2."""

    name: ClassVar[str] = "reward"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    task_type: ClassVar[str | None] = "SEQ_CLS"
    pipeline_tag: ClassVar[str | None] = "text-classification"
    formats: ClassVar[tuple[str, ...]] = ("preference",)
    loss_unit: ClassVar[str] = "nats per pair"
    metric_needs: ClassVar[tuple[str, ...]] = ("losses", "preferences")
    default_metrics: ClassVar[tuple[str, ...]] = (
        "loss", "rewards_accuracies", "rewards_margins", "rewards_chosen", "rewards_rejected",
    )  # fmt: skip
    learns_labels: ClassVar[bool] = True
    options: ClassVar[str | None] = "reward"
    train_on: ClassVar[str | None] = "completions"
    splits_rows: ClassVar[bool] = False
    reads_whole_batches: ClassVar[bool] = True

    settings: RewardConfig = field(default_factory=RewardConfig)

    @property
    def encoding(self) -> Encoding:
        from peftcli.tasks.preferences.encoding import encoding_of

        return encoding_of(self.name)

    def with_options(self, options: Any) -> Task:
        return replace(self, settings=options)

    def head_for(self, train: TokenStore, validation: TokenStore | None, base: LabelHead | None) -> LabelHead | None:
        """One output, whatever the rows are; a base that grants rewards already goes on from its own."""
        from peftcli.models.heads import MEASURED, LabelHead

        return LabelHead.unnamed(1, MEASURED)

    def arrange(self, rows: TokenStore) -> TokenStore:
        from peftcli.tasks.preferences.arranging import require_pairs

        require_pairs(rows, f"`task: {self.name}` compares two")
        return rows

    def require_fit(self, model: nn.Module, rows: Sequence[TrainingRow], *, pad_token_id: int, pads: bool) -> None:
        from peftcli.tasks.preferences.batching import with_one_answer
        from peftcli.tasks.row_checks import require_rows_answered

        alone = [with_one_answer(row) for row in rows]
        # answers of one row are seldom of one length, so that padding cannot be avoided
        require_rows_answered(self, model, alone, pad_token_id=pad_token_id, pads=True)

    def collate(self, rows: Sequence[TrainingRow], *, pad_token_id: int) -> Batch:
        """The sequences of all answers, as `preferences.batching` describes them, without pad tokens at their ends."""
        from peftcli.tasks.preferences.batching import collate

        return collate(rows, pad_token_id=pad_token_id, ends_with_pad=False)

    def weigh(self, batch: Batch) -> float:
        return float(len(batch["present"]))

    def targets_in(self, row: TrainingRow) -> int:
        return 2

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(sequences, 1)"""
        from peftcli.tasks.labels.reading import row_logits

        return row_logits(model, batch)

    def whole_batch(self, model: nn.Module, parts: Sequence[Batch]) -> Sequence[Batch]:
        from peftcli.tasks.preferences.granting import told

        return told(parts)

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """Summed over pairs. A batch that was not told of a whole one is the whole."""
        from peftcli.tasks.preferences.granting import loss

        return loss(self.logits(model, batch), batch, self.settings)

    def score_rows(self, model: nn.Module, batch: Batch) -> RowScores:
        import torch

        from peftcli.tasks.preferences.granting import scores

        with torch.no_grad():
            return scores(self.logits(model, batch), batch, self.settings)


TASK = Reward()
