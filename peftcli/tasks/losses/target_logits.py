"""Logits only where there is a target: the head never sees a position that carries no loss.

A hook in front of the output embedding keeps the hidden states that predict a target, so that what a model does after
its head (soft caps, logit scales) stays the model's own code. Prompt methods lengthen the sequence in front, hence the
real tokens are always the last ones. Whether a model lets itself be treated so (its head is called once, on hidden
states of one sequence, and what follows acts on each position alone) is proven on the model itself, with a few tokens,
before it is relied upon; every other model gives its full logits.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from peftcli.models.modes import evaluating
from peftcli.models.structure import output_embedding

Inputs = dict[str, Tensor]
"""Arguments of the model, (batch, seq) each: `input_ids`, `attention_mask`."""

_PROBE_ROWS, _PROBE_LENGTH = 2, 3
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
_LOW_PRECISION_TOLERANCE = 5e-2

# model -> (its head, whether the hook in front of that head is exact)
_proven: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()


def target_logits(model: nn.Module, inputs: Inputs, positions: Tensor) -> Tensor:
    """Logits of chosen positions, (chosen, vocab), in the model's own type.

    `inputs`: `input_ids` and `attention_mask`, (batch, seq). `positions`: indices into the flattened (batch * seq).
    """
    if head_can_be_narrowed(model):
        logits = _narrow_logits(model, inputs, positions)
        if logits is not None:
            return logits
        _proven[model] = (id(output_embedding(model)), False)
    return full_logits(model, inputs, positions)


def head_can_be_narrowed(model: nn.Module) -> bool:
    """Whether the head can be given the chosen positions only; proven once per model and head."""
    head = output_embedding(model)
    if head is None:
        return False
    known = _proven.get(model)
    if known is None or known[0] != id(head):
        known = (id(head), _probe(model))
        _proven[model] = known
    return known[1]


def _narrow_logits(model: nn.Module, inputs: Inputs, positions: Tensor) -> Tensor | None:
    """The chosen logits through a narrowed head, None where the model did not play along."""
    head = output_embedding(model)
    assert head is not None
    length = inputs["input_ids"].shape[1]
    calls = 0
    logits: Tensor | None = None

    def narrow(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        if not args or args[0].dim() != 3:
            return None
        real = args[0][:, -length:]  # (batch, seq, hidden), without what a prompt method put in front
        chosen = real.reshape(-1, real.shape[-1]).index_select(0, positions)
        return (chosen.unsqueeze(0), *args[1:]), kwargs

    def take(_module: nn.Module, _args: Any, output: Any) -> None:
        nonlocal logits
        logits = logits_of(output)

    # first among the model's own hooks: a prompt method would cut the virtual tokens off, which are not there any more
    hooks = [
        head.register_forward_pre_hook(narrow, with_kwargs=True),
        model.register_forward_hook(take, prepend=True),
    ]
    try:
        model(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    if calls != 1 or logits is None or logits.shape[:-1] != (1, len(positions)):
        return None
    return logits.squeeze(0)


def full_logits(model: nn.Module, inputs: Inputs, positions: Tensor) -> Tensor:
    """Logits of chosen positions, cut out of all of them."""
    length = inputs["input_ids"].shape[1]
    logits = logits_of(model(**inputs, use_cache=False))[:, -length:]
    return logits.reshape(-1, logits.shape[-1]).index_select(0, positions)


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output."""
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


def _probe(model: nn.Module) -> bool:
    """Compares both ways on a few tokens: more chosen positions than a row is long, so that no later cut can hide."""
    inputs, positions = probe_batch(model)
    with evaluating(model):
        narrow = _narrow_logits(model, inputs, positions)
        full = full_logits(model, inputs, positions)
    return narrow is not None and equal_logits(narrow, full)


def probe_batch(model: nn.Module) -> tuple[Inputs, Tensor]:
    """A few tokens on the model's device, and positions among them."""
    device = next(model.parameters()).device
    ids = torch.arange(_PROBE_ROWS * _PROBE_LENGTH, device=device).view(_PROBE_ROWS, _PROBE_LENGTH)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.tensor([0, 1, 3, 4, 5], device=device)


def equal_logits(found: Tensor, full: Tensor) -> bool:
    """Whether two ways gave the same logits, up to what their type rounds."""
    tolerance = _TOLERANCE.get(full.dtype, _LOW_PRECISION_TOLERANCE)
    return found.shape == full.shape and torch.allclose(found, full, rtol=tolerance, atol=tolerance, equal_nan=True)
