"""The keys of a recipe, walked through the section classes: names, nesting, documentation."""

from __future__ import annotations

import difflib
import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from peftcli.adapters.config import MethodConfig
from peftcli.adapters.registry import config_class, method_names, resolve_name
from peftcli.errors import RecipeError
from peftcli.evaluation.config import GenerationConfig
from peftcli.recipe.schema import Recipe

METHOD = "method"
"""The section whose keys depend on `method.type`."""
GENERATION = "generation"
TYPE = "type"
"""The key that chooses the kind of a section."""


@dataclass(frozen=True)
class Key:
    """One key: its dotted name, where it is declared, and the method whose field it is."""

    name: str
    owner: type[BaseModel]
    field: FieldInfo
    method: str | None = None

    @property
    def last(self) -> str:
        """The key without its section."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def section(self) -> str:
        """The dotted path of the section that the key is in; "" at the top."""
        return self.name.rpartition(".")[0]


def arms(annotation: Any) -> Iterator[Any]:
    """The members of a union, however nested and annotated; an annotation that is no union is its own arm."""
    if get_origin(annotation) is Annotated:
        yield from arms(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from arms(member)
    else:
        yield annotation


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The section classes that a value of this annotation may be."""
    return [arm for arm in arms(annotation) if isinstance(arm, type) and issubclass(arm, BaseModel)]


def items_of(annotation: Any) -> Any | None:
    """The annotation of a list's items; None where no list is allowed."""
    for arm in arms(annotation):
        if get_origin(arm) is list:
            return get_args(arm)[0]
    return None


def names_of(annotation: Any) -> list[str]:
    """The words that a value of this annotation may be."""
    words = [word for arm in arms(annotation) if get_origin(arm) is Literal for word in get_args(arm)]
    return [word for word in words if isinstance(word, str)]


def section_for(annotation: Any, type_name: str | None) -> type[BaseModel] | None:
    """The section class for a value: the only one, or the one whose `type` allows `type_name`."""
    found = sections_of(annotation)
    if len(found) <= 1:
        return found[0] if found else None
    for section in found:
        if TYPE in section.model_fields and type_name in names_of(section.model_fields[TYPE].annotation):
            return section
    return None


def type_names(annotation: Any) -> list[str]:
    """The `type` names of the sections that a value may be (optimizers, schedules)."""
    return [
        name
        for section in sections_of(annotation)
        if TYPE in section.model_fields
        for name in names_of(section.model_fields[TYPE].annotation)
    ]


def method_class(type_name: object) -> type[MethodConfig] | None:
    """The fields of a method by any of its names; None for an unknown one."""
    if not isinstance(type_name, str):
        return None
    try:
        return config_class(resolve_name(type_name)[0])
    except RecipeError:
        return None


def _walk(owner: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in owner.model_fields.items():
        yield Key(prefix + name, owner, field)
        if prefix + name == METHOD:
            # the fields below `method` depend on its type: `method_keys` has them
            continue
        item = items_of(field.annotation)
        for section in [*sections_of(field.annotation), *(sections_of(item) if item is not None else [])]:
            yield from _walk(section, f"{prefix}{name}.")


@functools.cache
def recipe_keys() -> tuple[Key, ...]:
    """Every key but the methods' own fields, in the contract's order. A field of several optimizers occurs for each."""
    seen: set[tuple[str, type[BaseModel]]] = set()
    found = []
    for key in _walk(Recipe, ""):
        if (key.name, key.owner) not in seen:
            # a section that two paths share is walked once for each
            seen.add((key.name, key.owner))
            found.append(key)
    return tuple(found)


@functools.cache
def method_keys() -> tuple[Key, ...]:
    """The fields of every method."""
    return tuple(
        Key(f"{METHOD}.{field}", config_class(name), info, name)
        for name in method_names()
        for field, info in config_class(name).model_fields.items()
    )


def find_keys(name: str) -> list[Key]:
    """The keys of a dotted name, or of a last part; the methods' fields among them."""
    wanted = name.replace("-", "_").strip(". ")
    every = [*recipe_keys(), *method_keys()]
    exact = [key for key in every if key.name == wanted]
    return exact or [key for key in every if key.last == wanted]


def near_keys(name: str, count: int = 3) -> list[str]:
    """Dotted names like this one."""
    every = dict.fromkeys(key.name for key in [*recipe_keys(), *method_keys()])
    wanted = name.replace("-", "_")
    found = difflib.get_close_matches(wanted, every, n=count, cutoff=0.6)
    last = {key.last: key.name for key in [*recipe_keys(), *method_keys()]}
    return found or [last[part] for part in difflib.get_close_matches(wanted.rsplit(".", 1)[-1], last, n=count)]


def free_text_keys(method: object) -> frozenset[str]:
    """Dotted names of the keys whose text may hold anything, as their sections say. `method`: the recipe's own, by any of
    its names; looking into every other one takes longer than all the rest of a recipe's reading."""
    own = method_class(method)
    methods = [] if own is None else [f"{METHOD}.{field}" for field in own.free_text]
    return frozenset(methods + [f"{GENERATION}.{field}" for field in GenerationConfig.free_text])
