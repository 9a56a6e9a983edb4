"""Words with tags: where they are in a batch, and what the model says of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from peftcli.models.heads import SINGLE, LabelHead
from peftcli.tasks.base import Batch, LossSum, RowScores, TrainingRow
from peftcli.tasks.labels.answers import Prediction
from peftcli.tasks.labels.labelled import Labelled
from peftcli.tasks.labels.losses import LabelLoss, scores_of
from peftcli.tasks.labels.reading import framed, token_logits
from peftcli.tasks.labels.vocabulary import output_of


def collate(rows: Sequence[TrainingRow], head: LabelHead, *, pad_token_id: int) -> Batch:
    """As `framed`, and `weights` (rows, longest) float32; `tags` (rows, longest) int64, the output of each target."""
    batch = framed([_Bare(row) for row in rows], pad_token_id=pad_token_id)
    shape = tuple(batch["input_ids"].shape)
    weights, tags = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int64)
    for index, row in enumerate(rows):
        outputs = [output_of(label, head) for label in row.labels]
        for at in np.flatnonzero(np.asarray(row.weights)).tolist():
            weights[index, at] = row.weights[at]
            # a row whose tags are asked for has none
            tags[index, at] = (outputs[row.parts[at]] or 0) if outputs else 0
    return {**batch, "weights": torch.from_numpy(weights), "tags": torch.from_numpy(tags)}


class _Bare:
    """A row without its parts, which number words here and are no types of tokens."""

    def __init__(self, row: TrainingRow) -> None:
        self.input_ids, self.weights, self.labels = row.input_ids, row.weights, row.labels
        self.parts, self.reference = np.empty(0, dtype=np.int32), np.empty(0)


@dataclass(frozen=True)
class Targets:
    """The targets of a batch in the order of their rows, with what the model says of each."""

    rows: Tensor
    """(targets,) row of each."""
    logits: Tensor
    """(targets, labels) float32."""
    truth: Tensor
    """(targets, labels) float32."""
    weights: Tensor
    """(targets,) of the tokens."""


def targets_of(model: nn.Module, batch: Batch, labels: int) -> Targets:
    """Asks the model about a batch."""
    logits = token_logits(model, batch)
    weights = batch["weights"].to(logits.device)
    rows, places = weights.nonzero(as_tuple=True)
    truth = nn.functional.one_hot(batch["tags"].to(logits.device)[rows, places], labels).float()
    return Targets(rows, logits[rows, places].float(), truth, weights[rows, places])


def loss(model: nn.Module, batch: Batch, head: LabelHead, rule: LabelLoss, weight: float) -> LossSum:
    """The summed loss of the first tokens of words."""
    found = targets_of(model, batch, len(head.names))
    return LossSum((rule.each(found.logits, found.truth) * found.weights).sum(), weight)


@torch.no_grad()
def score_rows(model: nn.Module, batch: Batch, head: LabelHead) -> RowScores:
    """The plain loss of each row, and what the model says of each word."""
    found, count = targets_of(model, batch, len(head.names)), len(batch["weights"])
    rows = found.rows.cpu().numpy()
    each = LabelLoss(SINGLE).each(found.logits, found.truth).double().cpu().numpy()
    labelled = Labelled(
        head.names, SINGLE, rows, scores_of(found.logits, SINGLE).numpy(), found.truth.double().cpu().numpy(), count
    )
    right = (labelled.said * labelled.truth).sum(axis=1)

    def by_row(values: np.ndarray) -> np.ndarray:
        return np.bincount(rows, weights=values, minlength=count)

    ones = np.ones(len(rows))
    return RowScores(by_row(each), by_row(ones), by_row(right), by_row(ones), labelled)


def predictions(labelled: Labelled) -> list[Prediction]:
    """A tag for each word of each row."""
    best = labelled.scores.argmax(axis=1)
    bounds = np.searchsorted(labelled.rows, np.arange(labelled.num_rows + 1))
    found = []
    for row in range(labelled.num_rows):
        chosen = range(int(bounds[row]), int(bounds[row + 1]))
        tags = [labelled.names[best[item]] for item in chosen]
        sure = [round(float(labelled.scores[item, best[item]]), 6) for item in chosen]
        found.append(Prediction(tags, sure, " ".join(tags)))
    return found
