"""Read a text whole and write another: encoder-decoder language models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from peftcli.tasks.base import Batch, LossSum, RowScores, Task, TrainingRow

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.data.encode.base import Encoding


class Seq2SeqLm(Task):
    """Loss of every token of the target, its end included, from those before it and the whole source."""

    name: ClassVar[str] = "seq2seq-lm"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    task_type: ClassVar[str | None] = "SEQ_2_SEQ_LM"
    formats: ClassVar[tuple[str, ...]] = ("seq2seq", "prompt-completion", "instruction", "segments")
    splits_rows: ClassVar[bool] = False
    metric_needs: ClassVar[tuple[str, ...]] = ("losses", "generations")
    model_inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "decoder_input_ids")

    @property
    def encoding(self) -> Encoding:
        from peftcli.data.encode.base import Encoding
        from peftcli.data.encode.rewriting import encode_pairs, encode_prompts
        from peftcli.data.parts import keep_texts
        from peftcli.data.rows import PairRow, PiecesRow

        return Encoding(self.name, {PairRow: encode_pairs, PiecesRow: encode_prompts}, keep=keep_texts)

    def require_fit(self, model: nn.Module, rows: Sequence[TrainingRow], *, pad_token_id: int, pads: bool) -> None:
        from peftcli.tasks.row_checks import require_rows_answered

        require_rows_answered(self, model, rows, pad_token_id=pad_token_id, pads=pads)

    def collate(self, rows: Sequence[TrainingRow], *, pad_token_id: int) -> Batch:
        """`input_ids`, `attention_mask` (rows, longest source); `targets`, `weights` (rows, longest target)."""
        from peftcli.tasks.losses import target_tokens

        return target_tokens.collate(rows, pad_token_id=pad_token_id)

    def weigh(self, batch: Batch) -> float:
        return float(batch["weights"].double().sum())

    def targets_in(self, row: TrainingRow) -> int:
        return sum(bool(weight) for weight in row.weights.tolist())

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(rows, longest target, vocabulary)"""
        from peftcli.tasks.losses import target_tokens

        return target_tokens.logits(model, batch)

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        from peftcli.tasks.losses import target_tokens

        return target_tokens.loss(model, batch)

    def score_rows(self, model: nn.Module, batch: Batch) -> RowScores:
        from peftcli.tasks.losses import target_tokens

        return target_tokens.score_rows(model, batch)


TASK = Seq2SeqLm()
