"""Loss of the tokens that an encoder-decoder writes, each from those before it and the whole source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftcli.data.encode.rewriting import TARGET
from peftcli.data.parts import texts
from peftcli.models.calling import decoder_start
from peftcli.models.device import to_device
from peftcli.models.spelling import takes
from peftcli.tasks.base import Batch, LossSum, RowScores, TrainingRow
from peftcli.tasks.losses.token_nll import token_nll


def collate(rows: Sequence[TrainingRow], *, pad_token_id: int) -> Batch:
    """`input_ids`, `attention_mask` (rows, longest source) int64; `targets` int64 and `weights` float32 (rows, longest
    target); all padded on the right."""
    is_target = [texts(np.asarray(row.parts)) == TARGET for row in rows]
    long = max(int((~chosen).sum()) for chosen in is_target), max(int(chosen.sum()) for chosen in is_target)
    source = np.full((len(rows), long[0]), pad_token_id, dtype=np.int64)
    mask = np.zeros_like(source)
    targets = np.full((len(rows), long[1]), pad_token_id, dtype=np.int64)
    weights = np.zeros(targets.shape, dtype=np.float32)
    for index, (row, chosen) in enumerate(zip(rows, is_target, strict=True)):
        ids, loss = np.asarray(row.input_ids), np.asarray(row.weights)
        read, written = int((~chosen).sum()), int(chosen.sum())
        source[index, :read], mask[index, :read] = ids[~chosen], 1
        targets[index, :written], weights[index, :written] = ids[chosen], loss[chosen]
    arrays = {"input_ids": source, "attention_mask": mask, "targets": targets, "weights": weights}
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """Of every target, (rows, longest target, vocabulary): the decoder reads the targets one place later, after the
    token that it starts with."""
    device = next(model.parameters()).device
    targets = batch["targets"]
    start = targets.new_full((len(targets), 1), decoder_start(model))
    inputs: dict[str, Any] = {name: to_device(batch[name], device) for name in ("input_ids", "attention_mask")}
    inputs["decoder_input_ids"] = to_device(torch.cat([start, targets[:, :-1]], dim=1), device)
    if takes(model, "use_cache"):
        inputs["use_cache"] = False
    found: Tensor = model(**inputs).logits
    return found


def loss(model: nn.Module, batch: Batch) -> LossSum:
    """Sum of weight times negative log-likelihood."""
    nll, weights, _ = _of_targets(model, batch)
    return LossSum((nll * weights).sum(), float(batch["weights"].double().sum()))


@torch.no_grad()
def score_rows(model: nn.Module, batch: Batch) -> RowScores:
    """Loss, and how many targets are ranked first."""
    nll, weights, hits = _of_targets(model, batch)
    rows, count = batch["weights"].nonzero(as_tuple=True)[0].cpu().numpy(), len(batch["weights"])

    def by_row(values: Tensor) -> np.ndarray:
        return np.bincount(rows, weights=values.double().cpu().numpy(), minlength=count)

    return RowScores(by_row(nll * weights), by_row(weights), by_row(hits), by_row(torch.ones_like(hits)))


def _of_targets(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log-likelihood, weight, and whether it is ranked first, of each target: (targets,)."""
    answers = logits(model, batch)
    weights = to_device(batch["weights"], answers.device)
    rows, places = batch["weights"].nonzero(as_tuple=True)
    rows, places = to_device(rows, answers.device), to_device(places, answers.device)
    tokens, chosen = to_device(batch["targets"], answers.device)[rows, places], answers[rows, places]
    return token_nll(chosen, tokens), weights[rows, places], chosen.argmax(dim=-1) == tokens
