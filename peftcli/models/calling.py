"""How a model is called on token ids alone, whatever it is: a decoder, an encoder-decoder, a classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peftcli.errors import ModelError
from peftcli.models.spelling import takes


def token_inputs(model: nn.Module, row: Tensor) -> dict[str, Any]:
    """Arguments of a forward pass over one unpadded row (1, length), or over rows of one length, without a cache.

    An encoder-decoder also reads the row on its decoder's side, after the start token.
    """
    inputs: dict[str, Any] = {"input_ids": row}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = torch.cat([row.new_full((len(row), 1), decoder_start(model)), row[:, :-1]], dim=1)
    if takes(model, "use_cache"):
        inputs["use_cache"] = False
    return inputs


def class_scores(output: Any) -> Tensor:
    """The scores in a model's output as (positions, classes): tokens of the vocabulary, or labels; of a model without
    any head the states of its positions.

    Raises `ModelError` for an output that has neither.
    """
    logits = getattr(output, "logits", getattr(output, "last_hidden_state", None))
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"{type(output).__name__} holds neither logits nor states", fix="a language model or a classifier is needed"
        )
    return logits.reshape(-1, logits.shape[-1])


def decoder_start(model: nn.Module) -> int:
    """Families name it `decoder_start_token_id`; those that do not start with the pad or the first token."""
    config: Any = model.config
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return 0
