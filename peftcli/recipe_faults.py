"""Turns what pydantic finds into sentences with a place and a remedy."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ValidationError

from peftcli.errors import Fault
from peftcli.recipe_names import looks_secret, suggestion
from peftcli.recipe_yaml import Path_, Place

_FREE_SECTIONS = ("columns", "checks", "rank_pattern", "alpha_pattern", "expect")


@dataclass
class Located:
    """Plain values of a recipe, the place of each, and what was wrong while reading."""

    value: Any
    places: dict[Path_, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def place(self, path: Path_) -> Place | str:
        """The place of a key, or of the nearest key above it."""
        while path:
            if path in self.places:
                return _shown(self.places[path])
            path = path[:-1]
        first = next(iter(self.places.values()), None)
        return first.file if first else "the recipe"


def _shown(place: Place) -> Place | str:
    # an override has no line
    return place if place.line else place.file


def recipe_faults(error: ValidationError, located: Located, *, prefix: Path_, model: type[BaseModel]) -> list[Fault]:
    """One fault for each thing that is wrong, in plain words."""
    by_path: dict[Path_, list[dict[str, Any]]] = {}
    for item in error.errors(include_url=False):
        path = (*prefix, *_real_path(tuple(item["loc"]), located, prefix))
        by_path.setdefault(path, []).append(dict(item))
    return [_fault(items, path, located, prefix, model) for path, items in by_path.items()]


def _real_path(loc: Path_, located: Located, prefix: Path_) -> Path_:
    """The part of pydantic's location that exists in the file: tags of unions and validators are left out."""
    path: Path_ = ()
    value: Any = located.value
    for part in prefix:
        value = value.get(part, {}) if isinstance(value, dict) else {}
    for index, part in enumerate(loc):
        if isinstance(value, dict) and part in value:
            value, path = value[part], (*path, part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value, path = value[part], (*path, part)
        elif index == len(loc) - 1 and isinstance(part, str) and isinstance(value, dict) and not _is_tag(part):
            path = (*path, part)  # a missing key
    return path


def _is_tag(part: str) -> bool:
    return "[" in part or "-" in part


def _fault(
    items: list[dict[str, Any]], path: Path_, located: Located, prefix: Path_, model: type[BaseModel]
) -> Fault:
    """One fault for a path; a union complains once for each of its members, and all that it wants is named."""
    item = next((i for i in items if i["type"] in ("extra_forbidden", "missing", "value_error")), items[0])
    key, where = _dotted(path), str(located.place(path))
    kind, found = item["type"], item.get("input")
    if kind == "extra_forbidden":
        return _unknown_key(path, where, prefix, model)
    if kind == "missing":
        return Fault(f"`{key}` is missing", where, _missing_fix(key))
    if kind == "value_error":
        message = str(item.get("ctx", {}).get("error", item["msg"])).removeprefix("Value error, ")
        head, _, fix = message.partition("; ")
        return Fault(f"`{key}` {head}" if not head.startswith("`") else head, where, fix or _describe(path, prefix, model))
    if kind == "union_tag_invalid":
        found = item["ctx"]["tag"]
    wanted = ", or ".join(dict.fromkeys(_wanted(i["type"], i.get("ctx", {})) for i in items))
    fix = _quote_hint(found, wanted) or _near_value(found, wanted) or _describe(path, prefix, model)
    return Fault(f"`{key}` must be {wanted}, found {_show(found)}", where, fix)


def _near_value(found: Any, wanted: str) -> str | None:
    if not isinstance(found, str):
        return None
    names = [word.strip(" ,") for word in wanted.removeprefix("one of ").split(", ")]
    near = difflib.get_close_matches(found.replace("_", "-"), [*names, *(n.replace("_", "-") for n in names)], n=1)
    return f"did you mean `{near[0]}`?" if near else None


def _dotted(path: Path_) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def _show(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    names = {"dict": "a section", "list": "a list"}
    head = names.get(type(value).__name__)
    return head or (text if len(text) <= 60 else text[:57] + "...")


_BOUNDS = {"greater_than": "above {gt:g}", "greater_than_equal": "at least {ge:g}", "less_than": "below {lt:g}",
           "less_than_equal": "at most {le:g}"}  # fmt: skip
_TYPES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text", "list": "a list",
    "dict": "a section of keys", "model": "a section of keys", "tuple": "a list",
}  # fmt: skip


def _wanted(kind: str, context: dict[str, Any]) -> str:
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**context)
    if kind == "literal_error":
        names = context["expected"].replace("'", "").replace(" or ", ", ")
        return f"one of {names}" if "," in names else f"`{names}`"
    if kind == "union_tag_invalid":
        return f"one of {context['expected_tags']}".replace("'", "")
    if kind == "finite_number":
        return "a finite number"
    if kind in ("string_too_short", "too_short", "list_too_short"):
        return "something: it is empty"
    if kind == "int_from_float":
        return "a whole number"
    for stem, name in _TYPES.items():
        if kind.startswith(stem):
            return name
    return "something else"


def _quote_hint(found: Any, wanted: str) -> str | None:
    if wanted == "a text" and isinstance(found, bool | int | float):
        shown = str(found).lower() if isinstance(found, bool) else found
        return f'put it in quotes: "{shown}"'
    if wanted in ("a number", "a whole number") and isinstance(found, str):
        try:
            float(found.replace("_", "").replace(",", ""))
        except ValueError:
            return None
        return f"remove the quotes: {found.replace('_', '').replace(',', '')}"
    if wanted == "true or false" and isinstance(found, str) and found.lower() in ("yes", "no", "on", "off"):
        return f"write {'true' if found.lower() in ('yes', 'on') else 'false'}"
    return None


def _missing_fix(key: str) -> str:
    examples = {"model": "for instance `model: Qwen/Qwen3-0.6B`", "data": "for instance `data: data/train.jsonl`"}
    return examples.get(key, f"`peft explain {key}` tells what it is")


def _unknown_key(path: Path_, where: str, prefix: Path_, model: type[BaseModel]) -> Fault:
    key, section = str(path[-1]), _dotted(path[:-1])
    owner = section_model(path[:-1], prefix, model)
    known = list(owner.model_fields) if owner is not None else []
    fix = suggestion(key, section, known, all_keys())
    return Fault(f"unknown key `{_dotted(path)}`", where, fix)


def all_keys() -> list[str]:
    """Every dotted key of a recipe, LoRA's fields under `method`."""
    from peftcli.adapters.registry import config_class
    from peftcli.recipe import Recipe

    found: list[str] = []
    for name, info in Recipe.model_fields.items():
        found.append(name)
        inner = config_class("lora") if name == "method" else model_in(info.annotation)
        if inner is not None:
            found += [f"{name}.{key}" for key in inner.model_fields]
    return [*found, "method.type"]


def section_model(path: Path_, prefix: Path_, model: type[BaseModel]) -> type[BaseModel] | None:
    """The pydantic class of the section at `path` below a model."""
    owner: type[BaseModel] | None = model
    for part in path[len(prefix) :]:
        if isinstance(part, int) or owner is None:
            continue
        info = owner.model_fields.get(str(part))
        owner = model_in(info.annotation) if info is not None else None
    return owner


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The first pydantic class within an annotation."""
    return next(_models_in(annotation), None)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    if typing.get_origin(annotation) is Literal:
        return
    if typing.get_origin(annotation) is Annotated:
        yield from _models_in(typing.get_args(annotation)[0])
        return
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _describe(path: Path_, prefix: Path_, model: type[BaseModel]) -> str | None:
    """The first sentence of the field's own documentation."""
    owner = section_model(path[:-1], prefix, model)
    info = owner.model_fields.get(str(path[-1])) if owner is not None and path else None
    if info is None or not info.description:
        return None
    return " ".join(info.description.split()).split(". ")[0].rstrip(".,")


def secret_faults(located: Located) -> list[Fault]:
    """Keys anywhere that ask for something that belongs in the environment."""
    found = []
    for path, place in located.places.items():
        free = any(part in _FREE_SECTIONS for part in path[:-1])
        if path and not free and isinstance(path[-1], str) and looks_secret(path[-1]) and path[-1] != "trainable_token":
            found.append(
                Fault(
                    f"`{_dotted(path)}` looks like a secret, and a recipe holds none",
                    str(_shown(place)),
                    "set it in the environment (HF_TOKEN, WANDB_API_KEY)",
                )
            )
    return found
