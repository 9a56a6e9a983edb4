"""A recipe as it is written into a run: whole, with absolute inputs, loading to the same recipe again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from peftcli.recipe.schema import Recipe
from peftcli.yaml_writing import dump

if TYPE_CHECKING:
    from peftcli.recipe.loading import LoadedRecipe

_NOT_WRITTEN = ("extends", "output")


def flat_recipe(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> plain value, for comparing two recipes; lists and free maps are values."""
    flat: dict[str, Any] = {}
    _flatten(_section(recipe, keep_empty=True), "", flat, recipe)
    return flat


def resolved_document(recipe: Recipe, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The recipe as plain data in the contract's order; `values` (dotted key -> value) replace `auto`."""
    document = _section(recipe, keep_empty=False)
    for key in _NOT_WRITTEN:
        document.pop(key, None)
    if not recipe.data.may_validate:
        # an evaluation that can find no rows must not be asked for
        document.pop("evaluation", None)
        document.get("checkpoint", {}).pop("best", None)
    for key, value in (values or {}).items():
        *sections, last = key.split(".")
        place = document
        for name in sections:
            place = place.setdefault(name, {})
        place[last] = value
    return document


def resolved_yaml(loaded: LoadedRecipe, values: Mapping[str, Any] | None = None) -> str:
    """The text of `RUN/recipe.yaml`: every key that says something, inputs as absolute paths, no `output`.

    Loads to the same recipe again, but for `output` and the keys that `values` (dotted key -> value) resolve.
    """
    return dump(resolved_document(loaded.recipe, values))


def _section(section: BaseModel, *, keep_empty: bool) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(section, Recipe) and name == "method":
            document[name] = {"type": section.method.name, **_section(section.method, keep_empty=keep_empty)}
            continue
        default = (
            field.get_default(call_default_factory=True, validated_data={})
            if field.default is not PydanticUndefined or field.default_factory
            else ...
        )
        # what is empty by default says nothing; every other default is written, so that a later version cannot change
        # it
        if not keep_empty and value == default and (value is None or value in ({}, [])):
            continue
        document[name] = _plain(value, keep_empty)
    return document


def _plain(value: Any, keep_empty: bool) -> Any:
    if isinstance(value, BaseModel):
        return _section(value, keep_empty=keep_empty)
    if isinstance(value, (list, tuple)):
        return [_plain(item, keep_empty) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, keep_empty) for key, item in value.items()}
    return value


def _flatten(document: Mapping[str, Any], prefix: str, flat: dict[str, Any], section: BaseModel | None) -> None:
    for name, value in document.items():
        inner = getattr(section, name, None) if section is not None else None
        if isinstance(inner, BaseModel) and isinstance(value, Mapping):
            _flatten(value, f"{prefix}{name}.", flat, inner)
        else:
            flat[prefix + name] = value
