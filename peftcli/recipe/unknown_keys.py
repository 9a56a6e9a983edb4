"""Keys that no section has, each with the nearest name: ours, of another section, or of another tool."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from peftcli.adapters.config import MethodConfig
from peftcli.errors import Fault
from peftcli.recipe.foreign_names import ADVICE, foreign_keys, words_within
from peftcli.recipe.keys import (
    METHOD,
    TYPE,
    items_of,
    method_class,
    method_keys,
    near_keys,
    recipe_keys,
    section_for,
    sections_of,
)
from peftcli.recipe.schema import Recipe
from peftcli.redaction import REMEDY as SECRET_REMEDY
from peftcli.redaction import is_secret_key
from peftcli.yaml import Node

_TELLING = 6
"""Letters of a word that is like few others by chance."""
Path = tuple[str | int, ...]
"""Keys and list positions that lead from the top of a recipe to a value."""


@dataclass(frozen=True)
class Stray:
    """An unknown key: where in the tree it is, and what to tell."""

    path: Path
    fault: Fault


def stray_keys(root: Node) -> list[Stray]:
    """Every unknown key of a recipe in canonical form."""
    return _in_section(root, Recipe, ())


def _in_section(node: Node, section: type[BaseModel], path: Path) -> list[Stray]:
    if not isinstance(node.value, dict):
        return []
    found: list[Stray] = []
    for key, child in node.value.items():
        field = section.model_fields.get(key)
        if field is None and not (key == TYPE and issubclass(section, MethodConfig)):
            found.append(Stray((*path, key), _fault(key, child, section, path)))
        elif (*path, key) == (METHOD,):
            found += _in_method(child, (METHOD,))
        elif field is not None:
            found += _in_value(child, field.annotation, (*path, key))
    return found


def _in_method(node: Node, path: Path) -> list[Stray]:
    kind = node.child(TYPE)
    own = method_class(kind.value if kind is not None else None)
    # a method that nobody knows has no fields to compare with; its name is the fault that is told
    return [] if own is None else _in_section(node, own, path)


def _in_value(node: Node, annotation: Any, path: Path) -> list[Stray]:
    if isinstance(node.value, list):
        item = items_of(annotation)
        if item is None:
            return []
        return [stray for index, child in enumerate(node.value) for stray in _in_value(child, item, (*path, index))]
    if isinstance(node.value, dict) and sections_of(annotation):
        kind = node.value.get(TYPE)
        section = section_for(annotation, kind.value if kind is not None and isinstance(kind.value, str) else None)
        return [] if section is None else _in_section(node, section, path)
    return []


def dotted(path: Path) -> str:
    """`("data", "train", 1, "split")` -> `data.train[1].split`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _without_positions(path: Path) -> str:
    return ".".join(part for part in path if isinstance(part, str))


def _fault(key: str, node: Node, section: type[BaseModel], path: Path) -> Fault:
    place = f"in `{dotted(path)}`" if path else "at the top level"
    if is_secret_key(key):
        return Fault(f"`{key}` asks for a secret {place}", node.key_where, SECRET_REMEDY)
    return Fault(f"unknown key `{key[:60]}` {place}", node.key_where, _remedy(key.replace("-", "_"), section, path))


def _remedy(key: str, section: type[BaseModel], path: Path) -> str:
    own = [*section.model_fields, *([TYPE] if issubclass(section, MethodConfig) else [])]
    lower = key.lower()
    if issubclass(section, MethodConfig) and key in section.refused_variants:
        return f"{section.refused_variants[key]} is not supported yet; leave it out"
    if lower in own:
        return f"did you mean `{lower}`?"
    # 0.8: a slip of the pen in a key of this section; looser likenesses wait until other tools' names are tried
    near = difflib.get_close_matches(lower, own, n=1, cutoff=0.8)
    if near:
        return f"did you mean `{near[0]}`?"
    if lower in (words := words_within(_without_positions(path))):
        return f"did you mean `{words[lower]}`?"
    if lower in ADVICE:
        return ADVICE[lower]
    if lower in foreign_keys():
        return _renamed(foreign_keys()[lower], section, path)
    if elsewhere := _elsewhere(lower, path):
        return elsewhere
    # 0.55: the last guess within this section, so two of them
    if near := difflib.get_close_matches(lower, own, n=2, cutoff=0.55):
        return f"did you mean {' or '.join(f'`{name}`' for name in near)}?"
    if len(lower) >= _TELLING and (near := near_keys(lower, count=1)):
        return f"did you mean `{near[0]}`?"
    # 24 names: a line or two; a longer list is what `peft schema` is for
    return f"known here: {', '.join(own[:24])}"


def _renamed(key: str, section: type[BaseModel], path: Path) -> str:
    parent, _, last = key.rpartition(".")
    if parent == dotted(path):
        return f"did you mean `{last}`?"
    return f"here it is `{key}`" + (f": put `{last}` under `{parent}`" if parent else ", at the top level")


def _elsewhere(key: str, path: Path) -> str | None:
    parents = list(
        dict.fromkeys(known.section for known in recipe_keys() if known.last == key and known.section != dotted(path))
    )
    if "" in parents:
        return f"`{key}` belongs at the top level"
    if parents:
        shown = " or ".join(f"`{parent}`" for parent in parents[:3])
        return f"`{key}` belongs under {shown}"
    methods = [known.method for known in method_keys() if known.last == key and known.method]
    if methods and path[:1] == (METHOD,):
        return f"`{key}` is a field of the method {', '.join(methods[:4])}"
    return f"`{key}` belongs under `method`" if methods else None
