"""Losses of answers that are compared or judged, of each row; they are summed elsewhere.

x is an answer's log-probability less that under the model at the start, c the chosen one and r the rejected one.

    dpo       -log sigmoid(beta (x_c - x_r))                      arXiv:2305.18290, eq. 7
    robust    the same without the bias of wrong verdicts         arXiv:2403.00409, eq. 9
    hinge     max(0, 1 - beta (x_c - x_r))                        arXiv:2305.10425
    ipo       (x_c - x_r - 1 / (2 beta))^2, a token               arXiv:2310.12036, eq. 17
    apo_zero  1 - sigmoid(beta x_c) + sigmoid(beta x_r)           arXiv:2408.06266, eq. 7
    apo_down  sigmoid(beta x_c) + 1 - sigmoid(beta (x_c - x_r))   arXiv:2408.06266, eq. 8
    kto       1 - sigmoid(beta (x_c - z)), 1 - sigmoid(beta (z - x_r))   arXiv:2402.01306, eq. 8; z: the drift

Without the model at the start, l being the log-probability itself:

    cpo       -log sigmoid(beta (l_c - l_r))                      arXiv:2401.08417, eq. 5
    simpo     -log sigmoid(beta (l_c - l_r) - gamma), a token     arXiv:2405.14734, eq. 6
    orpo      -beta log sigmoid(log odds_c - log odds_r), a token arXiv:2403.07691, eq. 7
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from peftcli.tasks.preference_config import PreferenceConfig


@dataclass(frozen=True)
class Compared:
    """Answers of rows; tensors of (rows, 2), the chosen one first, 0 where a row has no such answer."""

    log_probabilities: Tensor
    """Summed over tokens, with their graph."""
    reference: Tensor
    """The same under the model at the start; zeros where the loss does not compare with it."""
    lengths: Tensor
    """Trained tokens."""
    present: Tensor
    """Which answers a row has, bool."""
    drift: Tensor | None = None
    """How far the model has gone from the start on answers to other prompts, a scalar without a graph, never below 0."""


def row_weights(present: Tensor, settings: PreferenceConfig) -> Tensor:
    """The weight of each row, (rows,) float64: one; where answers are judged one by one, their number."""
    answers = present.sum(dim=1).double()
    # a pair of apo_zero is one comparison, as two losses of kto are two
    return answers if settings.needs_drift else answers.clamp(max=1.0)


def each(answers: Compared, settings: PreferenceConfig) -> Tensor:
    """The loss of each row, (rows,), with the graph of the log-probabilities."""
    ratios = answers.log_probabilities - answers.reference
    if settings.by_token:
        ratios = ratios / answers.lengths.clamp(min=1)
    if settings.loss == "kto":
        assert answers.drift is not None, "measured before the loss"
        return _judged(ratios, answers.present, settings.beta, answers.drift)
    if settings.loss == "apo_zero":
        return _apo_zero(ratios, answers.present, settings.beta)
    return _OF_PAIRS[settings.loss](ratios[:, 0], ratios[:, 1], settings)


ROUNDING = 1e-6
"""Of a log-probability: what the company that a row is padded for may change of it."""


def rewards(answers: Compared, settings: PreferenceConfig) -> Tensor:
    """What the model implicitly grants each answer, (rows, 2), without a graph; no more than rounding is nothing."""
    found = (answers.log_probabilities - answers.reference).detach()
    found = torch.where(found.abs() <= ROUNDING * answers.reference.abs(), 0.0, found)
    if settings.by_token and not settings.has_reference:
        found = found / answers.lengths.clamp(min=1)
    return settings.beta * found


def _judged(ratios: Tensor, present: Tensor, beta: float, drift: Tensor) -> Tensor:
    drift = drift.to(ratios)
    signs = ratios.new_tensor([1.0, -1.0])
    return ((1.0 - torch.sigmoid(beta * signs * (ratios - drift))) * present).sum(dim=1)


def _apo_zero(ratios: Tensor, present: Tensor, beta: float) -> Tensor:
    likely = torch.sigmoid(beta * ratios)
    return ((1.0 - likely[:, 0]) * present[:, 0]) + likely[:, 1] * present[:, 1]


def _dpo(chosen: Tensor, rejected: Tensor, settings: PreferenceConfig) -> Tensor:
    return _smoothed(settings.beta * (chosen - rejected), settings.label_smoothing)


def _smoothed(lead: Tensor, smoothing: float) -> Tensor:
    return -logsigmoid(lead) * (1.0 - smoothing) - logsigmoid(-lead) * smoothing


def _robust(chosen: Tensor, rejected: Tensor, settings: PreferenceConfig) -> Tensor:
    lead, wrong = settings.beta * (chosen - rejected), settings.label_smoothing
    return (-(1.0 - wrong) * logsigmoid(lead) + wrong * logsigmoid(-lead)) / (1.0 - 2.0 * wrong)


def _hinge(chosen: Tensor, rejected: Tensor, settings: PreferenceConfig) -> Tensor:
    return torch.relu(1.0 - settings.beta * (chosen - rejected))


def _ipo(chosen: Tensor, rejected: Tensor, settings: PreferenceConfig) -> Tensor:
    return (chosen - rejected - 1.0 / (2.0 * settings.beta)) ** 2


def _apo_down(chosen: Tensor, rejected: Tensor, settings: PreferenceConfig) -> Tensor:
    beta = settings.beta
    return torch.sigmoid(beta * chosen) + 1.0 - torch.sigmoid(beta * (chosen - rejected))


def _simpo(chosen: Tensor, rejected: Tensor, settings: PreferenceConfig) -> Tensor:
    return _smoothed(settings.beta * (chosen - rejected) - settings.simpo_gamma, settings.label_smoothing)


def _orpo(chosen: Tensor, rejected: Tensor, settings: PreferenceConfig) -> Tensor:
    lead = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -settings.beta * logsigmoid(lead)


def _log1mexp(values: Tensor) -> Tensor:
    """log(1 - exp(x)) of x below 0, exact near 0 and far from it (Maechler 2012)."""
    # a log-probability of 0 is a certain answer: its odds are cut off at what float32 can tell from certainty
    values = values.clamp(max=-torch.finfo(torch.float32).eps)
    near = values > -0.6931471805599453
    # both sides of `where` have gradients, so neither may meet what the other is for
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, values, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, values))),
    )


_OF_PAIRS: dict[str, Callable[[Tensor, Tensor, PreferenceConfig], Tensor]] = {
    "dpo": _dpo,
    "robust": _robust,
    "hinge": _hinge,
    "ipo": _ipo,
    "apo_down": _apo_down,
    "cpo": _dpo,
    "simpo": _simpo,
    "orpo": _orpo,
}
