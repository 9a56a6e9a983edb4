"""Weights of task heads that a base does not hold: drawn at random when it is loaded, and noted."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from peftcli.models.auto_class import purpose_of

_NEW_HEADS = "_peftcli_new_heads"


def new_head_keys(model: nn.Module) -> tuple[str, ...]:
    """Weights of a task head that the base did not hold: they were drawn at random when it was loaded."""
    found: tuple[str, ...] = model.__dict__.get(_NEW_HEADS, ())
    return found


def note_new_heads(model: nn.Module, missing: Sequence[str]) -> list[str]:
    """Notes weights of new task heads among those that no file has; returns the others, which a base must have."""
    prefix = getattr(model, "base_model_prefix", "")
    drawn = [key for key in missing if _is_new_head(key, prefix, model)]
    model.__dict__[_NEW_HEADS] = tuple(sorted(drawn))
    return [key for key in missing if key not in drawn]


def _is_new_head(key: str, backbone_prefix: str, model: nn.Module) -> bool:
    """Task heads (`score`, `classifier`) of a base that never had one are new on purpose; a language head never is."""
    name = key.split(".")[0]
    labels = purpose_of(model)
    heads = ("qa_outputs",) if labels is None or not labels.labels else (name,)
    return name != backbone_prefix and name in heads and hasattr(model, name)
