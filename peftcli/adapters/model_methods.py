"""Methods of a transformers model that would act on the wrappers while an adapter is on it.

`save_pretrained` would write the wrappers' names, which no release of transformers reads; `resize_token_embeddings` would
put new tables in their place. Both are refused. `tie_weights` looks for weights by the names of the bare model: what is
one tensor in the base stays one, so there is nothing for it to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from peftcli.errors import AdapterError

Overrides = dict[str, Any]
"""Name of a method -> what the model itself held under that name, None where nothing."""


def override(model: nn.Module) -> Overrides:
    """Puts ours in the place of the model's methods, where it has them; returns what `restore` needs."""
    found = {name: ours for name, ours in _OURS.items() if callable(getattr(model, name, None))}
    before: Overrides = {name: model.__dict__.get(name) for name in found}
    # on the object, not on its class: other models of the class keep theirs
    model.__dict__.update(found)
    return before


def restore(model: nn.Module, before: Overrides) -> None:
    """The model's own methods again."""
    for name, held in before.items():
        model.__dict__.pop(name, None)
        if held is not None:
            model.__dict__[name] = held


def _refused(name: str, fix: str) -> Callable[..., None]:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AdapterError(f"`model.{name}` does not go with an adapter on the model", fix=fix)

    return refuse


def _tie_nothing(*args: Any, **kwargs: Any) -> None:
    """Tied weights are tied as they are in the base."""


_OURS: dict[str, Callable[..., None]] = {
    "save_pretrained": _refused(
        "save_pretrained", "`peftcli.adapters.save` writes the adapter; `merge` first to save a whole model"
    ),
    "resize_token_embeddings": _refused("resize_token_embeddings", "detach the adapter, resize, and attach again"),
    "tie_weights": _tie_nothing,
}
