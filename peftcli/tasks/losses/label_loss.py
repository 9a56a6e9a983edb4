"""The loss of the tokens that carry loss, and what evaluation asks of them, with memory bounded by chunks of tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from peftcli.kernels import active as fast_paths
from peftcli.kernels.label_loss import Head, chunks, label_loss
from peftcli.kernels.names import LABEL_LOSS
from peftcli.models.structure import output_embedding
from peftcli.tasks.losses.split_head import SplitHead
from peftcli.tasks.losses.target_logits import Inputs, target_logits
from peftcli.tasks.losses.token_nll import token_nll

LOGITS_AT_ONCE = 1 << 26
"""Logits that an evaluation holds at a time (256 MiB in float32)."""


def weighted_loss(model: nn.Module, inputs: Inputs, positions: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """Sum of weight times negative log-likelihood of `tokens`, each predicted at one of `positions`; a float32 scalar.

    `positions`: indices into the flattened (batch * seq). tokens, weights (chosen,).
    """
    if fast_paths.active(LABEL_LOSS):
        loss = _fast(model, inputs, positions, tokens, weights)
        if loss is not None:
            return loss
    logits = target_logits(model, inputs, positions)
    return (token_nll(logits, tokens) * weights).sum()


def _fast(model: nn.Module, inputs: Inputs, positions: Tensor, tokens: Tensor, weights: Tensor) -> Tensor | None:
    split: SplitHead | None = fast_paths.remembered(model, lambda: SplitHead.of(model))
    # asked before anything runs: a pass that is thrown away would have drawn its dropout
    why = _unfit(split, positions.device.type)
    found = split.hidden(inputs, positions) if split is not None and why is None else None
    if split is None or found is None:
        fast_paths.fell_back(LABEL_LOSS, why or _HEADLESS)
        return None
    fast_paths.took(LABEL_LOSS)
    hidden, answer = found
    with split.answering(inputs, answer):
        return label_loss(hidden, tokens, weights, Head(split.logits, split.trained, split.vocabulary), token_nll)


_HEADLESS = "the model's head cannot be told apart from the rest"


def _unfit(split: SplitHead | None, device: str) -> str | None:
    if split is None:
        return _HEADLESS
    if torch.is_autocast_enabled(device):
        return "torch's autocast chooses the types"
    return "float16 needs its gradients scaled from the start" if split.dtype == torch.float16 else None


def logits_in_chunks(model: nn.Module, inputs: Inputs, positions: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Logits of chosen positions piece by piece: which of them, and (rows, vocab). For use without a graph."""
    split = SplitHead.of(model) if len(positions) * _vocabulary(model) > LOGITS_AT_ONCE else None
    found = None if split is None else split.hidden(inputs, positions)
    if split is None or found is None:
        yield slice(0, len(positions)), target_logits(model, inputs, positions)
        return
    hidden, answer = found
    with split.answering(inputs, answer):
        for rows in chunks(len(positions), split.vocabulary, LOGITS_AT_ONCE):
            yield rows, split.logits(hidden[rows])


def _vocabulary(model: nn.Module) -> int:
    """Rows of the output embedding; 0 where the model has none."""
    weight = getattr(output_embedding(model), "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) else 0
