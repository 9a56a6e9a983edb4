"""Log-probabilities of answers under a model, and the loss of a batch made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from peftcli.models.device import kind_of, to_device
from peftcli.tasks.base import Batch, LossSum
from peftcli.tasks.losses.label_loss import logits_in_chunks
from peftcli.tasks.losses.target_logits import target_logits
from peftcli.tasks.losses.token_nll import token_nll
from peftcli.tasks.preference_config import PreferenceConfig
from peftcli.tasks.preferences.losses import Compared, each, rewards, row_weights

COUNTS = "counts"
"""What a part of a batch is told of all of it: (5,) float64, the numbers of `count`."""
DRIFT = "drift"
"""What a part of a batch is told of all of it: see `Compared.drift`."""


@dataclass(frozen=True)
class Read:
    """What a model says of the sequences of a batch; float64 where the device has it."""

    answers: Compared
    sft: Tensor
    """Negative log-likelihood of the chosen answer's tokens that are trained as such, (rows,)."""


def read(model: nn.Module, batch: Batch, settings: PreferenceConfig, *, drift: Tensor | None = None) -> Read:
    """The answers of a batch under the model, with a graph where gradients are on."""
    device = _device(model)
    weights = to_device(batch["weights"], device)
    sft = sft_weights(batch, settings)
    nll = _token_costs(model, batch, torch.maximum(batch["weights"], sft))
    present = to_device(batch["present"], device)
    rows, sides = to_device(batch["row"], device), to_device(batch["side"], device)
    places = 2 * rows + sides
    count = len(batch["present"])

    def by_answer(values: Tensor) -> Tensor:
        flat = torch.zeros(2 * count, dtype=values.dtype, device=device)
        return flat.index_copy(0, places, values).view(count, 2)

    lengths = by_answer((weights > 0).sum(dim=1).to(nll.dtype))
    known = to_device(batch["reference"], device).to(nll.dtype)[:, :2]
    reference = torch.where(present, known, 0.0) if settings.has_reference else torch.zeros_like(lengths)
    answers = Compared(-by_answer((nll * weights).sum(dim=1)), reference, lengths, present, drift)
    return Read(answers, by_answer((nll * to_device(sft, device)).sum(dim=1))[:, 0])


def loss(model: nn.Module, batch: Batch, settings: PreferenceConfig) -> LossSum:
    """The summed loss of a batch that was told of the whole one, with facts that add up over its parts."""
    found = read(model, batch, settings, drift=batch.get(DRIFT))
    weight = float(row_weights(batch["present"], settings).sum())
    total = each(found.answers, settings).sum()
    counts = batch[COUNTS].tolist()
    if settings.sft:
        # the mean over the tokens of the whole batch, as often as the comparison's mean is summed up
        total = total + settings.sft * counts[_ROWS] / counts[_TOKENS] * found.sft.sum()
    return LossSum(total.float(), weight, _facts(found.answers, settings, counts))


_ROWS, _CHOSEN, _REJECTED, _PAIRS, _TOKENS = range(5)


def count(batch: Batch, settings: PreferenceConfig) -> Tensor:
    """Of a part of a batch, (5,) float64: weight of its rows, chosen answers, rejected ones, pairs, and tokens of chosen
    answers that are trained as such."""
    present = batch["present"]
    return torch.stack(
        [
            row_weights(present, settings).sum(),
            *present.double().sum(dim=0),
            present.all(dim=1).double().sum(),
            sft_weights(batch, settings).double().sum(),
        ]
    )


@torch.no_grad()
def drift(model: nn.Module, parts: list[Batch]) -> Tensor:
    """How far the model has gone from the start on answers to other prompts: the mean of the log-ratios over a whole batch,
    never below 0 (arXiv:2402.01306, section 4.1); a scalar on the CPU, the same however the batch is cut."""
    gaps = np.concatenate([gap(model, part) for part in parts])
    # exact: the order in which parts come must not show
    return torch.tensor(max(0.0, float(np.mean(np.sort(gaps)))), dtype=torch.float64)


@torch.no_grad()
def gap(model: nn.Module, batch: Batch) -> np.ndarray:
    """Log-probability of each answer to another prompt less that under the model at the start, (rows,) float64."""
    found: np.ndarray = other_log_probabilities(model, batch) - batch["reference"][:, 2].cpu().numpy()
    return found


@torch.no_grad()
def other_log_probabilities(model: nn.Module, batch: Batch) -> np.ndarray:
    """Of the answers to other prompts, (rows,) float64; zeros where rows carry none."""
    if "other_input_ids" not in batch:
        return np.zeros(len(batch["present"]))
    other = {name.removeprefix("other_"): tensor for name, tensor in batch.items() if name.startswith("other_")}
    weights = to_device(other["weights"], _device(model))
    found: np.ndarray = -(_token_costs(model, other, other["weights"]) * weights).sum(dim=1).double().cpu().numpy()
    return found


def _token_costs(model: nn.Module, batch: Batch, wanted: Tensor) -> Tensor:
    """Negative log-likelihood of each wanted token, zero elsewhere: (sequences, longest), in float64 where there is one: a
    long answer's sum would lose in float32 what a small step changes of it."""
    device = _device(model)
    inputs = {name: to_device(batch[name], device) for name in ("input_ids", "attention_mask")}
    places = wanted.flatten().nonzero().squeeze(1)
    places = to_device(places, device)
    tokens = inputs["input_ids"].flatten()[places]
    if torch.is_grad_enabled():
        costs = token_nll(target_logits(model, inputs, places - 1), tokens)
    else:
        chunks = logits_in_chunks(model, inputs, places - 1)
        costs = torch.cat([token_nll(logits, tokens[rows]) for rows, logits in chunks])
    wide = costs.float() if kind_of(device) == "mps" else costs.double()
    flat = torch.zeros(wanted.numel(), dtype=wide.dtype, device=device)
    return flat.index_copy(0, places, wide).view(wanted.shape)


def sft_weights(batch: Batch, settings: PreferenceConfig) -> Tensor:
    """Tokens of chosen sequences that are trained as such, (sequences, longest)."""
    chosen = (batch["side"] == 0)[:, None]
    if not settings.sft:
        return torch.zeros_like(batch["weights"])
    if not settings.sft_reads_prompts:
        return batch["weights"] * chosen
    everything = batch["attention_mask"].to(batch["weights"].dtype).clone()
    everything[:, 0] = 0.0
    return everything * chosen


@torch.no_grad()
def _facts(answers: Compared, settings: PreferenceConfig, counts: list[float]) -> dict[str, Tensor]:
    """Shares of a part in the means over the whole batch."""
    granted = rewards(answers, settings)
    likely = answers.log_probabilities.detach()
    if settings.by_token and not settings.has_reference:
        likely = likely / answers.lengths.clamp(min=1)
    found = {}
    for side, name in enumerate(("chosen", "rejected")):
        if number := counts[_CHOSEN + side]:
            has = answers.present[:, side]
            found[f"rewards_{name}"] = (granted[:, side] * has).sum() / number
            found[f"logps_{name}"] = (likely[:, side] * has).sum() / number
    if counts[_CHOSEN] and counts[_REJECTED]:
        found["rewards_margins"] = found["rewards_chosen"] - found["rewards_rejected"]
    if pairs := counts[_PAIRS]:
        both = answers.present.all(dim=1)
        won = 0.5 + 0.5 * torch.sign(granted[:, 0] - granted[:, 1])  # a tie is half a win
        found["rewards_accuracies"] = (won * both).sum() / pairs
    return found


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
