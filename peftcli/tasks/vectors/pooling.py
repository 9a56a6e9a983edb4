"""One vector of each text: a forward pass of the backbone, then the pooling that the base is used with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peftcli.errors import ModelError
from peftcli.models.device import to_device
from peftcli.models.sentences import CLS, LAST
from peftcli.models.spelling import takes
from peftcli.tasks.base import Batch

TEXTS = ("input_ids", "attention_mask")


def embed(model: nn.Module, batch: Batch, pooling: str) -> Tensor:
    """The vectors of a batch's texts, (texts, width), float32, of any length. Texts are padded on the right."""
    device = next(model.parameters()).device
    inputs: dict[str, Any] = {name: to_device(batch[name], device) for name in TEXTS}
    if takes(model, "use_cache"):
        inputs["use_cache"] = False
    states = getattr(model(**inputs), "last_hidden_state", None)
    if not isinstance(states, Tensor):
        raise ModelError(
            f"{type(model).__name__} gives no states of tokens", fix="choose an encoder or a decoder of text"
        )
    mask = inputs["attention_mask"]
    # a method that puts tokens of its own in front of a text may leave their states in the answer
    return pooled(states[:, -mask.shape[1] :].float(), mask, pooling)


def pooled(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """(texts, length, width) states of tokens -> (texts, width). `mask`: (texts, length), 1 at real tokens."""
    if pooling == CLS:
        return states[:, 0]
    if pooling == LAST:
        last = mask.sum(dim=1) - 1
        return states[torch.arange(len(states), device=states.device), last]
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-9)


def unit(vectors: Tensor) -> Tensor:
    """The same directions with length 1."""
    return torch.nn.functional.normalize(vectors, dim=-1)
