"""The layer that some encoders put on their first state (`pooler`): nothing that reads states alone ever asks it.

A model that is opened for its states is built without it: many checkpoints lack it, where transformers would draw it at
random, and an adapter on it would never see a gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import transformers

from peftcli.models.auto_class import FEATURES

_ARGUMENT = "add_pooling_layer"
"""Of the classes in transformers that have a pooler to leave out."""
_NAME = "pooler"


def without_pooler(auto_class: str, config: Any, *, pooler: bool) -> dict[str, bool]:
    """Arguments of a class's constructor; none where it has no pooler, or where one is wanted."""
    if pooler or auto_class != FEATURES.auto_class:
        return {}
    mapping: Any = getattr(transformers, auto_class)._model_mapping
    found = mapping.get(type(config), ())
    classes = found if isinstance(found, tuple) else (found,)
    return {_ARGUMENT: False} if any(_ARGUMENT in inspect.signature(each).parameters for each in classes) else {}


def has_pooler(keys: Iterable[str]) -> bool:
    """Whether tensors of an adapter stand on a pooler: then the model that it is for has one."""
    return any(_NAME in key.split(".") for key in keys)
