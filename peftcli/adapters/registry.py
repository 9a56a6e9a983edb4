"""Name -> method, found by folder or entry point, loaded only when asked for. Importing this imports no torch."""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.adapters.config import MethodConfig
from peftcli.errors import AdapterError, RecipeError

if TYPE_CHECKING:
    from peftcli.adapters.base import Method

ENTRY_POINT_GROUP = "peftcli.methods"
METHODS_FOLDER = Path(__file__).parent / "methods"
"""Each of our methods is one folder here."""


@functools.cache
def _outside_methods() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}


@functools.cache
def own_method_names() -> tuple[str, ...]:
    """The methods that ship with the package, sorted."""
    return tuple(sorted(path.parent.name for path in METHODS_FOLDER.glob("*/config.py")))


@functools.cache
def method_names() -> tuple[str, ...]:
    """All methods, ours and those of installed packages, sorted."""
    return tuple(sorted({*own_method_names(), *_outside_methods()}))


@functools.cache
def config_class(name: str) -> type[MethodConfig]:
    """The configuration class of a method by its own (not its short) name."""
    if name in _outside_methods():
        return method(name).config_class
    module = importlib.import_module(f"peftcli.adapters.methods.{name}.config")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, MethodConfig) and vars(value).get("name") == name
    )


@functools.cache
def short_names() -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Short name -> (method, fields that it sets)."""
    return {
        short: (name, fields) for name in method_names() for short, fields in config_class(name).short_names.items()
    }


def resolve_name(name: str) -> tuple[str, Mapping[str, Any]]:
    """A name as a recipe writes it (hyphens or underscores, short or own) -> (method, preset fields).

    Raises `RecipeError` with the nearest names.
    """
    key = name.strip().lower().replace("-", "_")
    if key in method_names():
        return key, {}
    if key in short_names():
        return short_names()[key]
    known = [*method_names(), *short_names()]
    # a low cutoff: names of methods are short, and one wrong letter in `loha` costs a quarter of them
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(f'`{n}`' for n in near)}?" if near else "`peft methods` lists them"
    raise RecipeError(f"unknown method `{name}`", fix=hint)


def method(name: str) -> Method:
    """The method itself; imports torch."""
    outside = _outside_methods().get(name)
    if outside is not None:
        found: Method = outside.load()
        return found
    found = importlib.import_module(f"peftcli.adapters.methods.{name}.method").METHOD
    return found


def method_of_pairs() -> str:
    """Name of the method whose files hold any low-rank update."""
    return next(name for name in own_method_names() if config_class(name).holds_pairs)


def config_class_of_type(peft_type: str, *, where: str) -> type[MethodConfig]:
    """The configuration class that reads files with this `peft_type`; `AdapterError` if no method does."""
    for name in method_names():
        if config_class(name).peft_type == peft_type:
            return config_class(name)
    known = sorted({config_class(name).peft_type for name in method_names()})
    near = difflib.get_close_matches(peft_type.upper(), known, n=1)
    raise AdapterError(
        f"no method for peft_type {peft_type!r}",
        where=where,
        fix=f"did the file mean {near[0]!r}?" if near else f"known types: {', '.join(known)}",
    )


def parse_method(section: str | Mapping[str, Any]) -> MethodConfig:
    """A recipe's `method` section (a name, or a mapping with `type`) -> its configuration.

    Field names may be written with hyphens. Raises `RecipeError` for an unknown method or a missing `type`, and
    pydantic's `ValidationError` for wrong fields (the recipe room turns it into text with line and column).
    """
    if isinstance(section, str):
        section = {"type": section}
    fields = {str(key).replace("-", "_"): value for key, value in section.items()}
    name = fields.pop("type", None)
    if not isinstance(name, str):
        raise RecipeError(
            "`method` needs a `type`", fix="for instance `method: lora`, or `method: {type: lora, r: 16}`"
        )
    own_name, preset = resolve_name(name)
    return config_class(own_name).model_validate({**preset, **fields})
