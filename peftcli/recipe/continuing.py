"""A recipe that goes on from an adapter: the adapter's own method rules, and what the recipe says of it must agree."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftcli.adapters.config import MethodConfig
from peftcli.adapters.documents import AdapterDocuments, read_documents
from peftcli.adapters.sources import KEY, resolve_adapter
from peftcli.errors import AdapterWarning
from peftcli.yaml_writing import flow

FIX = "leave it out: the adapter's own fields rule"
"""What to do about a contradiction."""


@dataclass(frozen=True)
class Agreement:
    """A recipe's method beside that of the adapter."""

    method: MethodConfig
    """The adapter's, with what the recipe adds that no file of it says."""
    contradictions: dict[str, str] = field(default_factory=dict)
    """Field of the recipe -> what the adapter has instead."""
    claims: dict[str, Any] = field(default_factory=dict)
    """Rules about layers other than the adapter's, which must mean the same layers of the model."""


def start_documents(name: str, *, fetch: bool) -> AdapterDocuments:
    """What the adapter under `model.init_adapter` says of itself. Raises as `resolve_adapter` and `read_documents`."""
    source = resolve_adapter(name, fetch=fetch)
    with warnings.catch_warnings():
        # what is odd about it is told once, where it is loaded
        warnings.simplefilter("ignore", AdapterWarning)
        return read_documents(source.folder)


def without_agreed(fields: Mapping[str, Any], start: AdapterDocuments) -> dict[str, Any]:
    """The fields (as plain JSON) in which a recipe says something else than the adapter does."""
    own = start.config.model_dump(mode="json")
    return {key: value for key, value in fields.items() if key not in own or own[key] != value}


def agreement(given: Mapping[str, Any], start: AdapterDocuments) -> Agreement:
    """`given`: fields of the recipe that `without_agreed` left, each valid by itself. Raises pydantic's `ValidationError`
    where they are not."""
    own = start.config
    parsed = type(own).model_validate_json(json.dumps(dict(given)), strict=True)
    free = own.recipe_only - own.layer_rules - set(start.own.get("fields") or {})
    found = Agreement(own)
    added: dict[str, Any] = {}
    for key in given:
        here, there = getattr(parsed, key), getattr(own, key)
        if here == there:
            continue
        if key in free:
            # steers training alone, and a file of the reference says nothing of it
            added[key] = here
        elif key in own.layer_rules:
            found.claims[key] = here
        else:
            found.contradictions[key] = flow(own.model_dump(mode="json")[key])
    return Agreement(own.model_copy(update=added), found.contradictions, found.claims)


def text_of(key: str, wanted: str) -> str:
    """A contradiction as the middle of a message."""
    return f"`method.{key}` contradicts the adapter of `{KEY}`, which has {wanted}"
