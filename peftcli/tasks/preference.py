"""Prefer one answer to another: language models trained on pairs, or on answers that were marked as good or bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from peftcli.tasks.base import Batch, LossSum, RowScores, Task, TrainingRow
from peftcli.tasks.preference_config import PreferenceConfig

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from peftcli.data.encode.base import Encoding
    from peftcli.data.store import EncodedRow, TokenStore


@dataclass(frozen=True)
class Preference(Task):
    """The mean over rows of a loss of log-probabilities of whole answers."""

    name: ClassVar[str] = "preference"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    task_type: ClassVar[str | None] = "CAUSAL_LM"
    pipeline_tag: ClassVar[str | None] = "text-generation"
    formats: ClassVar[tuple[str, ...]] = ("preference",)
    loss_unit: ClassVar[str] = "per row"
    rate_factor: ClassVar[float] = 0.1
    metric_needs: ClassVar[tuple[str, ...]] = ("losses", "preferences", "likelihoods", "generations")
    default_metrics: ClassVar[tuple[str, ...]] = (
        "loss", "rewards_accuracies", "rewards_margins", "rewards_chosen", "rewards_rejected", "logps_chosen",
        "logps_rejected",
    )  # fmt: skip
    options: ClassVar[str | None] = "preference"
    train_on: ClassVar[str | None] = "completions"
    splits_rows: ClassVar[bool] = False
    reads_whole_batches: ClassVar[bool] = True
    reference_numbers: ClassVar[int] = 3

    settings: PreferenceConfig = field(default_factory=PreferenceConfig)

    @property
    def encoding(self) -> Encoding:
        from peftcli.tasks.preferences.encoding import encoding_of

        return encoding_of(self.name)

    def with_options(self, options: Any) -> Task:
        return replace(self, settings=options)

    @property
    def has_reference(self) -> bool:
        return self.settings.has_reference

    def arrange(self, rows: TokenStore) -> TokenStore:
        from peftcli.tasks.preferences.arranging import arranged

        return arranged(rows, self.settings)

    def written(self, row: EncodedRow) -> EncodedRow:
        from peftcli.tasks.preferences.batching import with_one_answer

        return replace(with_one_answer(row), origin=row.origin)

    def require_fit(self, model: nn.Module, rows: Sequence[TrainingRow], *, pad_token_id: int, pads: bool) -> None:
        from peftcli.tasks.base_checks import require_blind_to_padding, require_causal, require_trains
        from peftcli.tasks.preferences.batching import with_one_answer

        token_ids = [int(token) for token in with_one_answer(rows[0]).input_ids]
        require_causal(model, token_ids)
        require_trains(model, token_ids)
        # answers of one row are seldom of one length
        require_blind_to_padding(model, token_ids, pad_token_id=pad_token_id)

    def collate(self, rows: Sequence[TrainingRow], *, pad_token_id: int) -> Batch:
        """The sequences of all answers, as `preferences.batching` describes them."""
        from peftcli.tasks.preferences.batching import collate

        return collate(rows, pad_token_id=pad_token_id)

    def weigh(self, batch: Batch) -> float:
        from peftcli.tasks.preferences.losses import row_weights

        return float(row_weights(batch["present"], self.settings).sum())

    def targets_in(self, row: TrainingRow) -> int:
        return sum(bool(weight) for weight in row.weights.tolist())

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Of every position of every sequence, (sequences, longest, vocabulary)."""
        from peftcli.tasks.losses import next_token

        return next_token.logits(model, batch)

    def whole_batch(self, model: nn.Module, parts: Sequence[Batch]) -> Sequence[Batch]:
        """The parts, each told the numbers of answers in all of them, and how far the model has gone where that counts."""
        from peftcli.tasks.preferences import reading

        told: Batch = {reading.COUNTS: sum(reading.count(part, self.settings) for part in parts)}  # type: ignore[dict-item]
        if self.settings.needs_drift:
            told[reading.DRIFT] = reading.drift(model, list(parts))
        return [{**part, **told} for part in parts]

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """Summed over rows. A batch that was not told of a whole one is the whole."""
        from peftcli.tasks.preferences import reading

        if reading.COUNTS not in batch:
            (batch,) = self.whole_batch(model, [batch])
        return reading.loss(model, batch, self.settings)

    def reference(self, model: nn.Module, batch: Batch) -> np.ndarray:
        from peftcli.tasks.preferences.scoring import reference_of

        return reference_of(model, batch, self.settings)

    def score_rows(self, model: nn.Module, batch: Batch) -> RowScores:
        from peftcli.tasks.preferences.scoring import score_rows

        return score_rows(model, batch, self.settings)

    def settled(self, scores: RowScores) -> RowScores:
        from peftcli.tasks.preferences.scoring import losses_of

        assert scores.preferences is not None, "answers are compared"
        return replace(scores, sums=losses_of(scores.preferences, self.settings))


TASK = Preference()
