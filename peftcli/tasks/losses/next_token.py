"""Next-token loss over the tokens that carry a weight; the head runs only where one of them is predicted.

The `weights` of a batch, (batch, seq), are the loss weight of each token *as a target*: the model's prediction at position
t is scored against token t + 1 with `weights[:, t + 1]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from peftcli.models.device import to_device
from peftcli.tasks.base import Batch, LossSum, RowScores, TrainingRow
from peftcli.tasks.losses.label_loss import logits_in_chunks, weighted_loss
from peftcli.tasks.losses.token_nll import token_nll

INPUTS = ("input_ids", "attention_mask", "position_ids")
"""What of a batch the model is given, where the batch has it."""


def collate(rows: Sequence[TrainingRow], *, pad_token_id: int) -> Batch:
    """`input_ids`, `attention_mask` (int64) and `weights` (float32), all (rows, longest), padded on the right."""
    return padded([(row.input_ids, row.weights) for row in rows], pad_token_id=pad_token_id)


def padded(runs: Sequence[tuple[Sequence[int] | np.ndarray, np.ndarray]], *, pad_token_id: int) -> Batch:
    """The same of runs of tokens and their weights, whichever rows they belong to."""
    shape = (len(runs), max(len(ids) for ids, _ in runs))
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    weights = np.zeros(shape, dtype=np.float32)
    for index, (ids, weight) in enumerate(runs):
        length = len(ids)
        input_ids[index, :length] = ids
        attention_mask[index, :length] = 1
        weights[index, 1:length] = weight[1:]  # nothing predicts the first token
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "weights": weights}
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def collate_packs(packs: Sequence[Sequence[TrainingRow]], *, pad_token_id: int) -> Batch:
    """`input_ids`, `position_ids` (int64) and `weights` (float32), all (packs, longest); several rows in each.

    There is no mask: positions that begin anew are what keeps rows apart, and a mask would switch that off. What pads a
    pack counts from 0 as well, so it is a row of its own that nobody sees.
    """
    shape = (len(packs), max(sum(len(row.input_ids) for row in pack) for pack in packs))
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    weights = np.zeros(shape, dtype=np.float32)
    for index, pack in enumerate(packs):
        start = 0
        for row in pack:
            end = start + len(row.input_ids)
            input_ids[index, start:end] = row.input_ids
            position_ids[index, start:end] = np.arange(end - start)
            weights[index, start + 1 : end] = row.weights[1:]  # the last token of one row does not predict the next
            start = end
        position_ids[index, start:] = np.arange(shape[1] - start)
    arrays = {"input_ids": input_ids, "position_ids": position_ids, "weights": weights}
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """Of every position, (rows, length, vocabulary)."""
    device = _device(model)
    answer: Tensor = model(**_inputs(batch, device), use_cache=False).logits
    return answer


def _inputs(batch: Batch, device: torch.device) -> Batch:
    return {name: to_device(batch[name], device) for name in INPUTS if name in batch}


def loss(model: nn.Module, batch: Batch) -> LossSum:
    """Sum of weight times negative log-likelihood. Counted without a device sync when `weights` is on the CPU."""
    targets = _Targets(batch, _device(model))
    total = weighted_loss(model, targets.inputs, targets.positions, targets.tokens, targets.weights)
    return LossSum(total=total, weight=targets.total_weight)


@torch.no_grad()
def score_rows(model: nn.Module, batch: Batch) -> RowScores:
    """Loss, and how many targets are ranked first."""
    targets = _Targets(batch, _device(model))
    costs, found = [], []
    for rows, logits in logits_in_chunks(model, targets.inputs, targets.positions):
        costs.append(token_nll(logits, targets.tokens[rows]))
        found.append(logits.argmax(dim=-1) == targets.tokens[rows])
    nll, hits = torch.cat(costs) * targets.weights, torch.cat(found)
    return RowScores(
        sums=targets.per_row(nll),
        weights=targets.per_row(targets.weights),
        correct=targets.per_row(hits),
        targets=targets.per_row(torch.ones_like(hits)),
    )


class _Targets:
    """Where the targets of a batch are, found on the device that holds `weights` (the CPU, after `collate`)."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.inputs = _inputs(batch, device)
        weights = batch["weights"].clone()
        weights[:, :1] = 0.0
        length = weights.shape[1]
        self.num_rows = len(weights)
        self.total_weight = float(weights.sum(dtype=torch.float64))
        found = weights.flatten().nonzero().squeeze(1)  # flat index of each target token
        self.rows = (found // length).cpu().numpy()
        self.weights = to_device(weights.flatten()[found], device)
        found = to_device(found, device)
        self.tokens = self.inputs["input_ids"].flatten()[found]
        self.positions = found - 1  # the position whose output predicts the target

    def per_row(self, values: Tensor) -> np.ndarray:
        """Sums values of targets by row, (num_rows,), in float64 on the CPU."""
        return np.bincount(self.rows, weights=values.double().cpu().numpy(), minlength=self.num_rows)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
