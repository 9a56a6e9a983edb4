"""Rewards that a scalar head grants: their loss over pairs, and what evaluation is told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from peftcli.models.device import to_device
from peftcli.tasks.base import Batch, LossSum, RowScores
from peftcli.tasks.preference_config import RewardConfig
from peftcli.tasks.preferences.scores import Preferences

PAIRS = "pairs"
"""What a part of a batch is told of all of it: the number of pairs."""


def told(parts: Sequence[Batch]) -> Sequence[Batch]:
    """The parts of an optimizer step, each told how many pairs all of them have."""
    count = torch.tensor(sum(len(part["present"]) for part in parts))
    return [{**part, PAIRS: count} for part in parts]


def loss(logits: Tensor, batch: Batch, settings: RewardConfig) -> LossSum:
    """The loss summed over pairs. `logits`: of each sequence, (sequences, 1)."""
    granted = of_rows(logits, batch)
    pairs = float(batch[PAIRS]) if PAIRS in batch else float(len(granted))
    return LossSum(each(granted, settings).sum(), float(len(granted)), _facts(granted.detach().double(), pairs))


def each(granted: Tensor, settings: RewardConfig) -> Tensor:
    """The loss of each pair, (rows,). `granted`: (rows, 2), the chosen one first."""
    lead = -logsigmoid(granted[:, 0] - granted[:, 1])
    return lead + settings.center_rewards_coefficient * granted.sum(dim=1) ** 2


def scores(logits: Tensor, batch: Batch, settings: RewardConfig) -> RowScores:
    """What metrics read of each pair."""
    granted = of_rows(logits, batch).double()
    losses, rewards = each(granted, settings).cpu().numpy(), granted.cpu().numpy()
    ones = np.ones(len(rewards))
    right = (rewards[:, 0] > rewards[:, 1]).astype(np.float64)
    present = batch["present"].cpu().numpy()
    told = Preferences(present, rewards, np.full(rewards.shape, np.nan))
    return RowScores(losses, ones, right, ones, preferences=told)


def of_rows(logits: Tensor, batch: Batch) -> Tensor:
    """Rewards of the answers of each row, (rows, 2) float32."""
    rows, sides = (to_device(batch[name], logits.device) for name in ("row", "side"))
    flat = torch.zeros(2 * len(batch["present"]), dtype=torch.float32, device=logits.device)
    return flat.index_copy(0, 2 * rows + sides, logits.float().squeeze(-1)).view(-1, 2)


def _facts(granted: Tensor, pairs: float) -> dict[str, Tensor]:
    """Shares of a part in the means over the whole batch."""
    chosen, rejected = granted.sum(dim=0) / pairs
    won = 0.5 + 0.5 * torch.sign(granted[:, 0] - granted[:, 1])
    return {
        "rewards_chosen": chosen,
        "rewards_rejected": rejected,
        "rewards_margins": chosen - rejected,
        "rewards_accuracies": won.sum() / pairs,
    }
