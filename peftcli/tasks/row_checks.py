"""Whether a base answers to whole rows, alone and in company: asked of the base itself before training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peftcli.errors import ModelError
from peftcli.models.device import is_out_of_memory
from peftcli.tasks.base import Task, TrainingRow

TOLERANCE = 1e-4
"""Of scores, relative to the largest of them; no less than a few steps of the arithmetic's own grid."""
GRID_STEPS = 16


@torch.no_grad()
def require_rows_answered(
    task: Task, model: nn.Module, rows: Sequence[TrainingRow], *, pad_token_id: int, pads: bool
) -> None:
    """Raises `ModelError` where the base does not answer to rows, or answers otherwise in the company of longer ones.

    `rows`: the longest of the data first; `pads`: whether rows will be padded.
    """
    alone = _answer(task, model, rows[-1:], pad_token_id)
    if not pads or len(rows[0].input_ids) == len(rows[-1].input_ids):
        return
    together = _answer(task, model, rows, pad_token_id)[-1:]
    if together.dim() > 2:
        together = together[:, : alone.shape[1]]
    grid = max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())
    scale = alone.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    seen = float((alone - together).abs().max() / scale)
    if seen > max(TOLERANCE, GRID_STEPS * grid):
        raise ModelError(
            f"{type(model).__name__} answers otherwise to a row that is padded, by {seen:.2g} of its scores",
            fix="training.micro_batch_size: 1 and evaluation.batch_size: 1, so that no row is padded",
        )


def _answer(task: Task, model: nn.Module, rows: Sequence[TrainingRow], pad_token_id: int) -> Tensor:
    try:
        return task.logits(model, task.collate(rows, pad_token_id=pad_token_id)).float()
    except (AttributeError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        raise ModelError(
            f"{type(model).__name__} does not answer to rows of text: {type(error).__name__}: {text[:200]}",
            fix="it needs more than text, rows of other lengths, or its config.json is odd",
        ) from error
