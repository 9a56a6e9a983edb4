"""Folding an adapter into the model in memory: the model is plain again, or it is untouched."""

from __future__ import annotations

import torch
from torch import nn

from peftcli.adapters.surgery import adapter_of, forget
from peftcli.errors import MergeError
from peftcli.models.structure import embeddings_are_tied


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
    output = model.get_output_embeddings()  # type: ignore[operator]
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    if torch.equal(output.weight, embedding.weight):
        output.weight = embedding.weight
        return
    config = model.config
    config.tie_word_embeddings = False  # type: ignore[union-attr]
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    text_config.tie_word_embeddings = False  # type: ignore[union-attr]


def _check_plain(model: nn.Module) -> None:
    """A merge that walks layers alone would silently succeed on hooks: nothing of ours may be left on the model."""
    left = [name for name, module in model.named_modules() if type(module).__module__.startswith("peftcli.")]
    if left:
        raise MergeError(f"merging left {len(left)} adapter modules behind: {', '.join(left[:3])}")
