"""Scores of compared answers for evaluation, and what the model at the start says of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from peftcli.errors import DataError
from peftcli.tasks.base import Batch, RowScores
from peftcli.tasks.preference_config import PreferenceConfig
from peftcli.tasks.preferences import reading
from peftcli.tasks.preferences.losses import Compared, each, rewards, row_weights
from peftcli.tasks.preferences.scores import Preferences


@torch.no_grad()
def reference_of(model: nn.Module, batch: Batch, settings: PreferenceConfig) -> np.ndarray:
    """Log-probabilities of the chosen, the rejected and the other answer of each row, (rows, 3) float64; 0 where a row has
    no such answer."""
    answers = reading.read(model, batch, settings).answers
    own = answers.log_probabilities.double().cpu().numpy()
    return np.concatenate([own, reading.other_log_probabilities(model, batch)[:, None]], axis=1)


@torch.no_grad()
def score_rows(model: nn.Module, batch: Batch, settings: PreferenceConfig) -> RowScores:
    """What `losses_of` needs of each row, its rewards and log-probabilities; the losses follow when all rows are known."""
    found = reading.read(model, batch, settings)
    if settings.has_reference and not bool(torch.isfinite(found.answers.reference).all()):
        raise DataError("rows are scored before the model at the start was asked", fix="report this")
    answers, present = found.answers, batch["present"].cpu().numpy()
    likely = answers.log_probabilities
    if settings.by_token and not settings.has_reference:
        likely = likely / answers.lengths.clamp(min=1)
    kept = (
        _array(answers.log_probabilities), _array(answers.reference), _array(answers.lengths), _array(found.sft),
        _tokens(batch, settings),
        reading.gap(model, batch) if settings.needs_drift else np.zeros(len(present)),
    )  # fmt: skip
    granted = _array(rewards(answers, settings))
    weights = row_weights(batch["present"], settings).cpu().numpy()
    told = Preferences(present, granted, _array(likely), kept)
    right = present.all(axis=1) & (granted[:, 0] > granted[:, 1])
    return RowScores(np.zeros(len(present)), weights, right.astype(np.float64), np.ones(len(present)), preferences=told)


def losses_of(found: Preferences, settings: PreferenceConfig) -> np.ndarray:
    """The loss of each row, (rows,), with what depends on all of them."""
    likely, reference, lengths, sft, tokens, gaps = (torch.from_numpy(numbers) for numbers in found.answers)
    present = torch.from_numpy(found.present)
    drift = gaps.sort().values.mean().clamp(min=0.0) if settings.needs_drift else None
    losses = each(Compared(likely, reference, lengths, present, drift), settings)
    if settings.sft:
        losses = losses + settings.sft * row_weights(present, settings).sum() / tokens.sum() * sft
    result: np.ndarray = losses.numpy()
    return result


def _tokens(batch: Batch, settings: PreferenceConfig) -> np.ndarray:
    """Tokens of each row's chosen answer that are trained as such, (rows,)."""
    by_sequence = reading.sft_weights(batch, settings).double().sum(dim=1).cpu().numpy()
    found: np.ndarray = np.bincount(batch["row"].cpu().numpy(), weights=by_sequence, minlength=len(batch["present"]))
    return found


def _array(values: Tensor) -> np.ndarray:
    found: np.ndarray = values.double().cpu().numpy()
    return found
