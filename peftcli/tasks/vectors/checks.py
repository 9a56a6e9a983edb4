"""Whether a base gives vectors of texts, alone and in company: asked of the base itself before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from peftcli.errors import ModelError
from peftcli.models.device import is_out_of_memory
from peftcli.tasks.base import Task, TrainingRow

if TYPE_CHECKING:
    from peftcli.tasks.base import Batch

TOLERANCE = 1e-4
"""Of the largest value of a vector; no less than a few steps of the arithmetic's own grid."""
GRID_STEPS = 16


@torch.no_grad()
def require_texts_answered(task: Task, model: nn.Module, rows: Sequence[TrainingRow], *, pad_token_id: int) -> None:
    """Raises `ModelError` where the base gives no vectors, or others in the company of longer texts.

    The texts of one row are of other lengths, so that they are padded whatever the micro-batch.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} reads one text and writes another: it has no states of a text alone",
            fix="choose an encoder (BERT and its kin) or a decoder as `model.base`",
        )
    batch = task.collate(rows, pad_token_id=pad_token_id)
    lengths = batch["attention_mask"].sum(dim=1)
    shortest = int(lengths.argmin())
    alone = _vectors(task, model, _text(batch, shortest, int(lengths[shortest])))[0]
    together = _vectors(task, model, batch)[shortest]
    grid = max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())
    seen = float((alone - together).abs().max() / alone.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
    if seen > max(TOLERANCE, GRID_STEPS * grid):
        raise ModelError(
            f"{type(model).__name__} makes another vector of a text that is padded, by {seen:.2g} of its size",
            fix="choose another base: texts of a row are padded to one length",
        )


def _text(batch: Batch, line: int, length: int) -> Batch:
    """One text of a batch without padding."""
    return {name: batch[name][line : line + 1, :length] for name in ("input_ids", "attention_mask")}


def _vectors(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    try:
        return task.logits(model, batch).float()
    except (AttributeError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        raise ModelError(
            f"{type(model).__name__} does not answer to texts: {type(error).__name__}: {text[:200]}",
            fix="it needs more than text, rows of other lengths, or its config.json is odd",
        ) from error
