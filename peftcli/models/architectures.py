"""Which of transformers' auto classes load a family."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import transformers

from peftcli.errors import ModelError
from peftcli.models.source import (
    BaseSource,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def auto_class_named(name: str) -> Any:
    """The class of transformers with that name; AttributeError where a release has none."""
    return getattr(transformers, name)


def require_architecture(source: BaseSource, config: PretrainedConfig, auto_class: str) -> None:
    """Raises `ModelError` where an auto class does not load that family, with what does."""
    if type(config) in auto_class_named(auto_class)._model_mapping:
        return
    where = source.location if source.is_local else None
    others = _auto_classes_of(config)
    text = config.get_text_config()
    if text is not config and others:
        raise ModelError(
            f"{source.name} ({config.model_type}) is a model for text with images or sound, which transformers loads "
            f"with {others[0]} and not with {auto_class}",
            where=where,
            fix=f"use a text model; the text part of this one is of the family {text.model_type}",
        )
    known = sorted({key.model_type for key in auto_class_named(auto_class)._model_mapping})
    near = difflib.get_close_matches(str(config.model_type), known, n=3)
    loads = f" (transformers loads it with {', '.join(others[:3])})" if others else ""
    raise ModelError(
        f"{source.name} ({config.model_type}) cannot be loaded with {auto_class}{loads}",
        where=where,
        fix="choose a model for this task" + (f"; near families: {', '.join(near)}" if near else ""),
    )


def _auto_classes_of(config: PretrainedConfig) -> list[str]:
    """Auto classes for a purpose that load a configuration: those for text with images first, then those that write."""
    names = [name for name in dir(transformers) if name.startswith("AutoModelFor")]
    mapped = [name for name in names if type(config) in getattr(auto_class_named(name), "_model_mapping", ())]
    return sorted(mapped, key=lambda name: ("ToText" not in name, not name.endswith("LM"), name))
