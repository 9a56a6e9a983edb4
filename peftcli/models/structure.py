"""Reads a model's structure from the model itself: linear layers, embeddings, head, blocks. No list of model classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from peftcli.errors import ModelError
from peftcli.models.alike import listed_layers
from peftcli.models.trace import participation
from peftcli.models.weights import is_linear, same_parameter, weight_view


@dataclass(frozen=True)
class Structure:
    """Module paths by role. Paths are those of the model as loaded, without any adapter."""

    linears: dict[str, nn.Module]
    """Every linear layer except heads."""
    norms: dict[str, nn.Module]
    heads: tuple[str, ...]
    """Output embedding and task heads: everything linear outside the backbone."""
    blocks: dict[str, nn.Module]
    """The repeated layers that read text, encoder and decoder alike, in order."""
    towers: dict[str, nn.Module]
    """Repeated layers that text does not pass: of an encoder of images or sound."""
    hidden_size: int
    num_layers: int


def output_embedding(model: nn.Module) -> nn.Module | None:
    """The output embedding (`lm_head`), None where the model has none."""
    getter = getattr(model, "get_output_embeddings", None)
    found = getter() if callable(getter) else None
    assert found is None or isinstance(found, nn.Module)
    return found


def input_embedding(model: nn.Module) -> nn.Module | None:
    """The token embedding, None where the module is no transformers model."""
    getter = getattr(model, "get_input_embeddings", None)
    found = getter() if callable(getter) else None
    assert found is None or isinstance(found, nn.Module)
    return found


def structure(model: nn.Module) -> Structure:
    """The structure of a transformers model (or of any module tree that looks like one)."""
    modules = dict(model.named_modules())
    heads = tuple(dict.fromkeys(_head_paths(model, modules)))
    linears = {
        path: module
        for path, module in modules.items()
        if is_linear(module) and not any(path == head or path.startswith(head + ".") for head in heads)
    }
    every = listed_layers(model)
    unused = participation(model).uncalled
    blocks = {path: block for path, block in every.items() if path not in unused} or every
    towers = {path: block for path, block in every.items() if path not in blocks}
    return Structure(
        linears=linears,
        norms={path: module for path, module in modules.items() if is_norm(module)},
        heads=heads,
        blocks=blocks,
        towers=towers,
        hidden_size=hidden_size(model),
        num_layers=len(blocks),
    )


def hidden_size(model: nn.Module) -> int:
    """Width of the residual stream: `hidden_size`, `n_embd` or `d_model` of the configuration (text part)."""
    config = getattr(model, "config", None)
    text_config = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    for name in ("hidden_size", "d_model", "n_embd", "dim"):
        value = getattr(text_config, name, None)
        if isinstance(value, int):
            return value
    embedding = next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)
    if embedding is not None:
        return embedding.embedding_dim
    linear = next((module for module in model.modules() if is_linear(module)), None)
    if linear is None:
        raise ModelError(
            "the model has neither a configured hidden size nor an embedding nor a linear layer",
            fix="methods adapt transformers models and modules built of linear layers",
        )
    return weight_view(linear).shape[1]


def is_norm(module: nn.Module) -> bool:
    """A layer norm or RMS norm of any family: no children, a one-dimensional weight, and a name that says so."""
    if any(True for _ in module.children()):
        return False
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and weight is not None and weight.dim() == 1


def _head_paths(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[str]:
    """Paths outside the backbone (`lm_head`, `score`, `classifier`), and the output embedding wherever it is."""
    output = output_embedding(model)
    backbone = getattr(model, "base_model", model)
    for path, module in modules.items():
        if output is not None and module is output:
            yield path
    if backbone is not model:
        for name, child in model.named_children():
            if child is not backbone and any(is_linear(part) for part in child.modules()):
                yield name


def embeddings_are_tied(model: nn.Module) -> bool:
    """Whether input and output embedding are one tensor."""
    output, embedding = output_embedding(model), input_embedding(model)
    if output is None or embedding is None:
        return False
    return same_parameter(getattr(output, "weight", None), getattr(embedding, "weight", None))
