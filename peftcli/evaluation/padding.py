"""Which prompts may share a batch: neither padding nor company may change an answer, and in some models they do.

A model that keeps a state goes through the padding before a prompt, and one that counts its positions itself begins at
another: there prompts share a batch only with others of their length. Some mix the rows of a batch up (RWKV, while it
goes on from its state): there each prompt is answered alone. Which it is, is tried out with a few tokens.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_PROBE = 8
"""Tokens of a prompt, and padding before them, that tell: few, so that a state cannot forget what it read."""

Prompts = Sequence[Sequence[int]]
Batches = list[list[int]]


def batches(model: Any, prompts: Prompts, *, batch_size: int, pad: int) -> Batches:
    """Numbers of the prompts by batch, the longest first; each batch is to be padded on the left."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    mixed = _cut(order, batch_size)
    shared = [batch for batch in mixed if len(batch) > 1]
    if not shared:
        return mixed
    # the pair whose lengths differ most is padded most, and would show it first
    widest = max(shared, key=lambda batch: len(prompts[batch[0]]) - len(prompts[batch[-1]]))
    long, short = list(prompts[widest[0]]), list(prompts[widest[-1]])[-_PROBE:]
    # no more padding than these prompts would have
    padding = min(_PROBE, len(prompts[widest[0]]) - len(prompts[widest[-1]]))
    alone = _first_logits(model, [short], pad)
    if _alike(alone, _first_logits(model, [short, long[-len(short) - padding :]], pad), model):
        return mixed
    # the same prompts without padding: then company is harmless, and padding is the fault
    if padding and _alike(alone, _first_logits(model, [short, long[-len(short) :]], pad), model):
        by_length = itertools.groupby(order, key=lambda index: len(prompts[index]))
        return [batch for _, group in by_length for batch in _cut(list(group), batch_size)]
    return _cut(order, 1)


def _cut(order: list[int], size: int) -> Batches:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _alike(alone: Tensor, found: Tensor, model: Any) -> bool:
    """Whether the first row got the same logits, up to rounding."""
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    # the root of the type's precision, of the largest logit: a batch sums in another order
    tolerance = torch.finfo(dtype).eps ** 0.5 * max(1.0, float(alone.abs().max()))
    return bool((alone[:, 0] - found[:, 0]).abs().max() <= tolerance)


def _first_logits(model: Any, rows: Batches, pad: int) -> Tensor:
    """Logits of the first two new tokens, (2, rows, vocabulary); draws from no random stream."""
    device, length = next(model.parameters()).device, max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    settings = copy.deepcopy(model.generation_config)
    settings.update(
        max_new_tokens=2,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        **dict.fromkeys(("temperature", "top_p", "top_k")),
    )
    found = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    return torch.stack(found.logits)
