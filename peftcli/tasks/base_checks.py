"""Whether a base may be trained by a task at all: asked of the base itself, on tokens of the data, before training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peftcli.errors import ModelError
from peftcli.models.device import is_out_of_memory

PROBE_LENGTH = 32
FILLER = 7
"""Padded positions after the probe."""
TOLERANCE = 1e-4
"""Of logits, relative to the largest of them; no less than a few steps of the arithmetic's own grid."""
GRID_STEPS = 4
PADDED_SHARE = 0.1
"""Of the positions: rounding may send a token of a mixture to another expert here and there."""


@torch.no_grad()
def require_causal(model: nn.Module, token_ids: Sequence[int]) -> None:
    """Raises `ModelError` where a later token changes what the model says before it: it would see the answer."""
    ids = _probe(model, token_ids)
    other = ids.clone()
    other[0, -1] = ids[0, 0] if ids[0, 0] != ids[0, -1] else (ids[0, -1] + 1) % _vocabulary(model)
    seen = _difference(_logits(model, ids)[:-1], _logits(model, other)[:-1])
    if bool((seen > _allowed(model)).any()):
        raise ModelError(
            f"{type(model).__name__} sees the tokens that it should predict: another last token changes its answers "
            f"before it by {float(seen.max()):.2g} of their size",
            fix="choose a decoder; of BERT and its kin `is_decoder: true` in config.json makes one, "
            "elsewhere two-way attention must be off",
        )


@torch.no_grad()
def require_blind_to_padding(model: nn.Module, token_ids: Sequence[int], *, pad_token_id: int) -> None:
    """Raises `ModelError` where padding after a row changes the model's answers to the row."""
    ids = _probe(model, token_ids)
    length = ids.shape[1]
    padded = torch.cat([ids, torch.full((1, FILLER), pad_token_id, dtype=ids.dtype, device=ids.device)], dim=1)
    mask = torch.ones_like(padded)
    mask[:, length:] = 0
    seen = _difference(_logits(model, ids), _logits(model, padded, attention_mask=mask)[:length])
    if float((seen > _allowed(model)).double().mean()) > PADDED_SHARE:
        raise ModelError(
            f"{type(model).__name__} ignores the attention mask: padding after a row changes its answers to the "
            f"row by {float(seen.max()):.2g} of their size",
            fix="training.micro_batch_size: 1 and evaluation.batch_size: 1, so that no row is padded",
        )


@torch.no_grad()
def require_trains(model: nn.Module, token_ids: Sequence[int]) -> None:
    """Raises `ModelError` where the model takes a row in evaluation and not in training (rows of fixed lengths alone)."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    try:
        _logits(model, _probe(model, token_ids, length=len(token_ids)))
    finally:
        model.eval()
        for name, buffer in model.named_buffers():
            if name in kept and not torch.equal(buffer, kept[name]):
                buffer.copy_(kept[name])


@torch.no_grad()
def require_rows_apart(model: nn.Module, token_ids: Sequence[int]) -> None:
    """Raises `ModelError` where a row's answers in a pack are not those that it has alone, or move with another row.

    The model is in evaluation mode. Both are asked: a model that ignores `position_ids` may answer to a row alike
    whatever stands before it, and one that takes them may still keep a state from row to row.
    """
    first = _probe(model, token_ids)
    second, other = first.flip(1), (first + 1) % _vocabulary(model)
    alone = _logits(model, second)
    packed = _second_of(model, first, second)
    seen = _difference(alone, packed)
    # rounding may send a token of a mixture of experts to another one here and there
    if float((seen > _allowed(model)).double().mean()) > PADDED_SHARE:
        raise _mixes_rows(model, "its answers to a row in a pack are not those to the row alone", seen)
    # the same shapes twice, so not even rounding differs; a short convolution leaks into the first tokens only
    seen = _difference(packed, _second_of(model, other, second))
    if bool((seen > _allowed(model)).any()):
        raise _mixes_rows(model, "a row sees the one before it in a pack", seen)


def _second_of(model: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """The model's answers to a row that another stands before."""
    length = first.shape[1]
    positions = torch.arange(length, device=first.device).repeat(2)[None]
    return _logits(model, torch.cat([first, second], dim=1), position_ids=positions)[length:]


def _mixes_rows(model: nn.Module, what: str, seen: Tensor) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot be trained on packed rows: {what} (by {float(seen.max()):.2g} of their size)",
        where="data.packing",
        fix="data.packing: false; packing needs attention that tells rows apart by position_ids, and no state",
    )


def _probe(model: nn.Module, token_ids: Sequence[int], *, length: int = PROBE_LENGTH) -> Tensor:
    """A row of the data's first tokens, two at least, (1, length)."""
    ids = [int(token) for token in token_ids[:length]]
    while len(ids) < 2:
        ids.append(0 if not ids or ids[-1] else 1)
    return torch.tensor([ids], device=next(model.parameters()).device)


def _logits(model: nn.Module, ids: Tensor, **inputs: Tensor) -> Tensor:
    """The model's answer to one sequence (1, length), (length, vocabulary), float32; `inputs` beside it, default: a mask of
    ones. Raises `ModelError` where it does not answer."""
    try:
        answer: Tensor = model(input_ids=ids, **(inputs or _plain(ids)), use_cache=False).logits[0].float()
    except (AttributeError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        when = " in training" if model.training else ""
        raise ModelError(
            f"{type(model).__name__} does not answer to a row of text{when}: {type(error).__name__}: {text[:200]}",
            fix="it needs more than text (a model beside it, images), rows of other lengths, or its config.json is odd",
        ) from error
    return answer


def _plain(ids: Tensor) -> dict[str, Tensor]:
    return {"attention_mask": torch.ones_like(ids)}


def _difference(one: Tensor, other: Tensor) -> Tensor:
    """Largest difference at each position, relative to the largest logit, (length,)."""
    return (one - other).abs().amax(dim=-1) / one.abs().max().clamp_min(torch.finfo(one.dtype).tiny)


def _allowed(model: nn.Module) -> float:
    """What rounding may change of logits, relative to the largest of them."""
    grid = max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())
    return max(TOLERANCE, GRID_STEPS * grid)


def _vocabulary(model: nn.Module) -> int:
    found: int = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    return found
