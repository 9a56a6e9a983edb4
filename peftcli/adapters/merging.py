"""Folding an adapter into the model in memory: the model is plain again, or it is untouched."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftcli.adapters.layers import named_base_modules
from peftcli.adapters.surgery import adapter_of, bare, forget
from peftcli.errors import MergeError
from peftcli.models.structure import input_embedding, output_embedding


def merge(model: nn.Module) -> None:
    """Bakes the adapter into the base's weights, computed in float32 and rounded once, and takes the wrappers out.

    Tied embeddings of which one side was adapted are untied, in the tensors and in `model.config`.
    Raises `MergeError` (the model is untouched) when the method has no weight-space form or a value is not finite.
    """
    model = bare(model)
    adapter = adapter_of(model)
    shared = _shared_places(model)
    adapter.merge()
    forget(model)
    _settle_tying(model, shared)
    _check_plain(model)


Place = tuple[nn.Module, str]
"""A module and the name of its parameter."""


def _shared_places(model: nn.Module) -> list[list[Place]]:
    """Places of each base parameter that stands in more than one."""
    places: dict[int, list[Place]] = {}
    for _, module in named_base_modules(model):
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module, name))
    return [group for group in places.values() if len(group) > 1]


def _settle_tying(model: nn.Module, shared: list[list[Place]]) -> None:
    """What was one tensor is one again where the merge left it equal everywhere; else the configuration says so."""
    embeddings = {id(module) for module in (input_embedding(model), output_embedding(model))}
    for (first, name), *others in shared:
        tensor = first.get_parameter(name)
        if all(torch.equal(tensor, module.get_parameter(other)) for module, other in others):
            for module, other in others:
                module.register_parameter(other, tensor)
        elif any(id(module) in embeddings for module, _ in [(first, name), *others]):
            config: Any = model.config
            config.tie_word_embeddings = False
            config.get_text_config().tie_word_embeddings = False


def _check_plain(model: nn.Module) -> None:
    """A merge that walks layers alone would silently succeed on hooks: nothing of ours may be left on the model."""
    left = [name for name, module in model.named_modules() if type(module).__module__.startswith("peftcli.")]
    if left:
        raise MergeError(f"merging left {len(left)} adapter modules behind: {', '.join(left[:3])}")
