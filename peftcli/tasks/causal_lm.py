"""Predict the next token: decoder-only language models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from peftcli.kernels.names import LABEL_LOSS
from peftcli.tasks.base import Batch, LossSum, RowScores, Task, TrainingRow

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.data.encode.base import Encoding


class CausalLm(Task):
    """Next-token loss over the tokens that carry a weight."""

    name: ClassVar[str] = "causal-lm"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    task_type: ClassVar[str | None] = "CAUSAL_LM"
    pipeline_tag: ClassVar[str | None] = "text-generation"
    formats: ClassVar[tuple[str, ...]] = (
        "messages", "sharegpt", "instruction", "prompt-completion", "text", "segments",
    )  # fmt: skip
    metric_needs: ClassVar[tuple[str, ...]] = ("losses", "generations")
    streams: ClassVar[bool] = True
    weighs_thoughts: ClassVar[bool] = True
    packs_rows: ClassVar[bool] = True
    kernels: ClassVar[frozenset[str]] = frozenset({LABEL_LOSS})

    @property
    def encoding(self) -> Encoding:
        from peftcli.data.encode.language import LANGUAGE

        return replace(LANGUAGE, task=self.name)

    def require_fit(self, model: nn.Module, rows: Sequence[TrainingRow], *, pad_token_id: int, pads: bool) -> None:
        from peftcli.tasks.base_checks import require_blind_to_padding, require_causal, require_trains

        token_ids = [int(token) for token in rows[0].input_ids]
        require_causal(model, token_ids)
        require_trains(model, token_ids)
        if pads:
            require_blind_to_padding(model, token_ids, pad_token_id=pad_token_id)

    def collate(self, rows: Sequence[TrainingRow], *, pad_token_id: int) -> Batch:
        """`input_ids`, `attention_mask` (int64) and `weights` (float32), all (rows, longest), padded on the right."""
        from peftcli.tasks.losses import next_token

        return next_token.collate(rows, pad_token_id=pad_token_id)

    def collate_packs(self, packs: Sequence[Sequence[TrainingRow]], *, pad_token_id: int) -> Batch:
        """`input_ids`, `position_ids` (int64) and `weights` (float32), all (packs, longest); there is no mask."""
        from peftcli.tasks.losses import next_token

        return next_token.collate_packs(packs, pad_token_id=pad_token_id)

    def require_rows_apart(self, model: nn.Module, token_ids: Sequence[int]) -> None:
        from peftcli.tasks.base_checks import require_rows_apart

        require_rows_apart(model, token_ids)

    def weigh(self, batch: Batch) -> float:
        return float(batch["weights"][:, 1:].double().sum())

    def targets_in(self, row: TrainingRow) -> int:
        return sum(bool(weight) for weight in row.weights[1:].tolist())

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        from peftcli.tasks.losses import next_token

        return next_token.logits(model, batch)

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """Sum of weight times negative log-likelihood. Counted without a device sync when `weights` is on the CPU."""
        from peftcli.tasks.losses import next_token

        return next_token.loss(model, batch)

    def score_rows(self, model: nn.Module, batch: Batch) -> RowScores:
        from peftcli.tasks.losses import next_token

        return next_token.score_rows(model, batch)


TASK = CausalLm()
