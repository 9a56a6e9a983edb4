"""Rows of a run that share sequences: how a step's rows are put into packs, and the proof that they stay apart there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peftcli.adapters.base import Adapter
from peftcli.data.packing import forward_passes
from peftcli.models.modes import evaluating
from peftcli.planning.padding import pack_tokens
from peftcli.planning.plan import Prepared
from peftcli.tasks.base import Batch, Task, TrainingRow
from peftcli.training.interfaces import Pack

NOISE = 0.05
"""Standard deviation of what is added to trained tensors while they are tried: most adapters start without an effect."""


def pack_of(prepared: Prepared, task: Task, *, pad_token_id: int) -> Pack | None:
    """How the loop packs the rows of a step; None where the recipe leaves each row by itself."""
    config = prepared.loaded.recipe.data
    if not config.packing:
        return None
    capacity = pack_tokens(config, prepared.data.train.lengths)

    def pack(rows: Sequence[TrainingRow], packs_per_pass: int) -> list[Batch]:
        passes = forward_passes([len(row.input_ids) for row in rows], capacity, packs_per_pass)
        chosen = [[[rows[place] for place in places] for places in packs] for packs in passes]
        return [task.collate_packs(packs, pad_token_id=pad_token_id) for packs in chosen]

    return pack


def require_rows_apart(prepared: Prepared, task: Task, model: nn.Module, adapter: Adapter | None = None) -> None:
    """Raises `ModelError` where packing is asked for and the base, or the base with its adapter, mixes rows of a pack.

    The adapter is tried with noise on its tensors, which are afterwards bit for bit what they were.
    """
    if not prepared.loaded.recipe.data.packing:
        return
    row = [int(token) for token in prepared.data.train[0].input_ids]
    kept: dict[str, Tensor] = {}
    if adapter is not None:
        kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in adapter.state().items()}
        _disturb(adapter)
    try:
        with evaluating(model):
            task.require_rows_apart(model, row)
    finally:
        if adapter is not None:
            adapter.load_state(kept)


@torch.no_grad()
def _disturb(adapter: Adapter) -> None:
    # of its own: trying must not take from the draws of the run
    generator = torch.Generator().manual_seed(0)
    for tensor in adapter.trainable_parameters().values():
        # drawn on the CPU, so that every device tries the same noise
        noise = torch.randn(tensor.shape, generator=generator) * NOISE
        tensor.add_(noise.to(device=tensor.device, dtype=tensor.dtype))
