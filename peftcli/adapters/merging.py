"""Folding an adapter into the model in memory: the model is plain again, or it is untouched."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftcli.adapters.surgery import adapter_of, forget
from peftcli.errors import MergeError
from peftcli.models.structure import embeddings_are_tied, input_embedding, output_embedding
from peftcli.models.weights import weight_view


def merge(model: nn.Module) -> None:
    """Bakes the adapter into the base's weights, computed in float32 and rounded once, and takes the wrappers out.

    Tied embeddings of which one side was adapted are untied, in the tensors and in `model.config`.
    Raises `MergeError` (the model is untouched) when the method has no weight-space form or a value is not finite.
    """
    adapter = adapter_of(model)
    tied_before = embeddings_are_tied(model)
    adapter.merge()
    forget(model)
    _settle_tying(model, tied_before)
    _check_plain(model)


def _settle_tying(model: nn.Module, tied_before: bool) -> None:
    if not tied_before or embeddings_are_tied(model):
        return
    output, embedding = output_embedding(model), input_embedding(model)
    assert output is not None, "tied embeddings are two modules"
    assert embedding is not None, "tied embeddings are two modules"
    if torch.equal(weight_view(output).dense(), weight_view(embedding).dense()):
        output.weight = embedding.weight
        return
    config: Any = model.config
    config.tie_word_embeddings = False
    config.get_text_config().tie_word_embeddings = False


def _check_plain(model: nn.Module) -> None:
    """A merge that walks layers alone would silently succeed on hooks: nothing of ours may be left on the model."""
    left = [name for name, module in model.named_modules() if type(module).__module__.startswith("peftcli.")]
    if left:
        raise MergeError(f"merging left {len(left)} adapter modules behind: {', '.join(left[:3])}")
