"""Documentation made from the recipe's classes: JSON Schema, `peft explain`, `peft methods`. Imports no torch."""

from __future__ import annotations

import difflib
import textwrap
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from peftcli import errors
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.registry import config_class, method_names, resolve_name, short_names
from peftcli.errors import PeftcliError, RecipeError
from peftcli.recipe import SHORT_FORMS, Recipe
from peftcli.recipe_faults import all_keys, model_in

WIDTH = 80


# -- JSON Schema -------------------------------------------------------------------------------------------------


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe: every key described, short forms allowed, a section for each method."""
    schema = Recipe.model_json_schema(mode="validation")
    definitions = schema.setdefault("$defs", {})
    definitions.pop("MethodConfig", None)
    variants: list[dict[str, Any]] = []
    for name in method_names():
        own = config_class(name).model_json_schema()
        definitions |= own.pop("$defs", {})
        names = [name, *(short for short, (method, _) in short_names().items() if method == name)]
        own["properties"] = {"type": {"enum": names, "description": "The method."}, **own["properties"]}
        own["required"] = ["type"]
        definitions[f"method.{name}"] = own
        variants.append({"$ref": f"#/$defs/method.{name}"})
    every = [*method_names(), *short_names()]
    properties = schema["properties"]
    properties["method"] = {
        "description": "The method and its fields.",
        "anyOf": [{"enum": sorted(every)}, *variants],
    }
    for key in ("model", "data"):
        section = dict(properties[key])
        description = section.pop("description", "")
        inner = model_in(Recipe.model_fields[key].annotation)
        assert inner is not None, "model and data are sections"
        short = inner.model_fields[SHORT_FORMS[key]].description
        properties[key] = {"description": description, "anyOf": [{"type": "string", "description": short}, section]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "peftcli recipe", **schema}


# -- explain -----------------------------------------------------------------------------------------------------


def explain(key: str) -> dict[str, Any]:
    """What a recipe key or an exit code is; `lines` is the text. Raises `RecipeError` with near names."""
    key = key.strip()
    if key.isdigit() or key in dir(errors):
        return _explain_code(key)
    parts = key.replace("-", "_").split(".")
    found = _find_field(parts)
    if found is None:
        raise _unknown_key(key)
    owner, info = found
    inner = model_in(info.annotation)
    if inner is MethodConfig:
        inner = None
    lines = [f"{'.'.join(parts)}", *_wrapped(info.description or "")]
    facts: dict[str, Any] = {"key": ".".join(parts), "description": info.description, "type": _type_text(owner, parts[-1])}
    lines.append(f"  type: {facts['type']}")
    if not info.is_required():
        facts["default"] = _default_text(info)
        lines.append(f"  default: {facts['default']}")
    if inner is not None:
        facts["keys"] = list(inner.model_fields)
        lines += ["  keys:", *_wrapped(", ".join(inner.model_fields), indent="    ")]
    return {**facts, "lines": lines}


def _explain_code(key: str) -> dict[str, Any]:
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, PeftcliError)
    ]
    signals = {"0": "done (warnings may have been printed)", "143": "terminated (SIGTERM), after a checkpoint"}
    if key in signals:
        return {"code": key, "lines": [f"exit code {key}", f"  {signals[key]}"]}
    found = [c for c in classes if str(c.exit_code) == key or c.__name__ == key]
    if not found:
        known = sorted({c.exit_code for c in classes} | {0, 143})
        raise RecipeError(f"there is no exit code {key}", fix=f"codes: {', '.join(map(str, known))}")
    code = found[0].exit_code
    lines = [f"exit code {code}", *_wrapped(found[0].summary)]
    lines += [f"  {c.__name__}: {' '.join((c.__doc__ or '').split())}" for c in found]
    return {"code": code, "summary": found[0].summary, "lines": lines}


def _find_field(parts: list[str]) -> tuple[type[BaseModel], FieldInfo] | None:
    owner: type[BaseModel] = Recipe
    for depth, part in enumerate(parts):
        if owner is MethodConfig or (depth == 1 and parts[0] == "method"):
            return _method_field(part)
        info = owner.model_fields.get(part)
        if info is None:
            return None
        if depth == len(parts) - 1:
            return owner, info
        inner = model_in(info.annotation)
        if inner is None:
            return None
        owner = inner
    return None


def _method_field(name: str) -> tuple[type[BaseModel], FieldInfo] | None:
    """A method field: LoRA's where it has it, else the first method that does."""
    for method in sorted(method_names(), key=lambda item: item != "lora"):
        info = config_class(method).model_fields.get(name)
        if info is not None:
            return config_class(method), info
    return None


def _unknown_key(key: str) -> RecipeError:
    keys = all_keys()
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.5) or [
        known for known in keys if known.rsplit(".", 1)[-1] == key
    ]
    near += [known for known in keys if known.endswith("." + key) and known not in near]
    hint = f"did you mean {', '.join(f'`{name}`' for name in near[:3])}?" if near else "`peft schema` lists every key"
    return RecipeError(f"no recipe key `{key}`", fix=hint)


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent=indent, subsequent_indent=indent)


def _default_text(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)  # type: ignore[call-arg]
    if isinstance(value, BaseModel):
        return str(getattr(value, "type", "its own defaults"))
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _hashable(value) else str(value)


def _hashable(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | type(None))


def _type_text(owner: type[BaseModel], name: str) -> str:
    """The type of a field in the words of JSON Schema."""
    schema = owner.model_json_schema(mode="validation")
    return _schema_type(schema["properties"].get(name, {})) or "a section"


def _schema_type(node: dict[str, Any]) -> str:
    if "enum" in node:
        return " | ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    for key in ("anyOf", "oneOf"):
        if key in node:
            return " | ".join(dict.fromkeys(filter(None, (_schema_type(item) for item in node[key]))))
    if node.get("type") == "array":
        return f"list of {_schema_type(node.get('items', {})) or 'values'}"
    if "$ref" in node:
        return "section"
    return str(node.get("type", ""))


# -- methods -----------------------------------------------------------------------------------------------------


def methods_document() -> dict[str, Any]:
    """All methods with their one-line summaries."""
    return {
        "methods": {
            name: {"summary": config_class(name).summary, "kind": config_class(name).kind, "in_peft": config_class(name).in_peft}
            for name in method_names()
        },
        "short_names": {short: {"method": method, **fields} for short, (method, fields) in short_names().items()},
    }


def methods_text() -> str:
    """What `peft methods` prints."""
    width = max(map(len, method_names()))
    lines = [f"{name:<{width}}  {config_class(name).summary}" for name in method_names()]
    lines += ["", "short names:"]
    for short, (method, fields) in short_names().items():
        setting = ", ".join(f"{key}: {value}" for key, value in fields.items())
        lines.append(f"  {short} = {{type: {method}, {setting}}}" if setting else f"  {short} = {method}")
    return "\n".join([*lines, "", "`peft methods NAME` tells a method's fields."])


def method_document(name: str) -> dict[str, Any]:
    """One method with its fields."""
    own, preset = resolve_name(name)
    config = config_class(own)
    return {
        "name": own,
        "preset": dict(preset),
        "summary": config.summary,
        "kind": config.kind,
        "peft_type": config.peft_type,
        "in_peft": config.in_peft,
        "learning_rate": config.learning_rate,
        "fields": {
            key: {"description": info.description, "type": _type_text(config, key), "default": _plain_default(info)}
            for key, info in config.model_fields.items()
        },
    }


def _plain_default(info: FieldInfo) -> Any:
    value = info.get_default(call_default_factory=True)  # type: ignore[call-arg]
    if value is PydanticUndefined:
        return None
    return value.model_dump() if isinstance(value, BaseModel) else value


def method_text(name: str) -> str:
    """What `peft methods NAME` prints."""
    document = method_document(name)
    config = config_class(document["name"])
    origin = "as in Hugging Face PEFT" if document["in_peft"] else "our own; Hugging Face PEFT has no such method"
    lines = [
        f"{document['name']}: {document['summary']}",
        *_wrapped(config.__doc__ or ""),
        f"  files: {origin}",
        f"  learning_rate: auto starts from {config.learning_rate:g} at width {config.learning_rate_width}",
    ]
    if document["preset"]:
        lines.append(f"  {name} sets {', '.join(f'{k}: {v}' for k, v in document['preset'].items())}")
    lines.append("")
    for key, facts in document["fields"].items():
        lines.append(f"{key}: {facts['type']} (default {_shown_default(facts['default'])})")
        lines += _wrapped(facts["description"] or "")
    return "\n".join(lines)


def _shown_default(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _hashable(value) else str(value)
