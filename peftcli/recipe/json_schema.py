"""JSON Schema of a recipe, for editors: every key described, short forms allowed, one variant for each method."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from peftcli.adapters.registry import config_class, method_names, short_names
from peftcli.data.names import check_names, format_names
from peftcli.evaluation.registry import metric_names
from peftcli.recipe.keys import type_names
from peftcli.recipe.schema import NAME_PATTERN, SHORT_FORMS, Recipe
from peftcli.recipe.wording import with_standard_bounds
from peftcli.tasks.registry import task_names
from peftcli.training.config import TrainingConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """The schema (2020-12) as plain data. What it refuses, `validate` refuses too, but for spellings with hyphens."""
    schema = Recipe.model_json_schema(mode="validation")
    definitions, properties = schema.setdefault("$defs", {}), schema["properties"]
    # the abstract base of the methods; each method stands as a variant of its own instead
    definitions.pop("MethodConfig", None)
    properties["method"] = _method(definitions, properties["method"].get("description", ""))
    for key in ("model", "data"):
        properties[key] = _with_short_form(properties[key], definitions, key)
    properties["task"]["enum"] = list(task_names())
    properties["name"]["anyOf"][0]["pattern"] = f"^{NAME_PATTERN.pattern}$"
    training = definitions["TrainingConfig"]["properties"]
    for key in ("optimizer", "scheduler"):
        names = type_names(TrainingConfig.model_fields[key].annotation)
        section = {name: training[key].pop(name) for name in ("oneOf", "discriminator") if name in training[key]}
        training[key]["anyOf"] = [{"enum": names}, section]
    # an adapter that training starts from has a method of its own
    schema["required"] = [key for key in schema["required"] if key != "method"]
    start = {"required": ["model"], "properties": {"model": {"type": "object", "required": ["init_adapter"]}}}
    schema["anyOf"] = [{"required": ["method"]}, start]
    data = definitions["DataConfig"]["properties"]
    data["format"]["enum"] = ["auto", *format_names()]
    data["checks"]["propertyNames"] = {"enum": list(check_names())}
    definitions["EvaluationConfig"]["properties"]["metrics"]["items"]["enum"] = list(metric_names())
    return {"$schema": DIALECT, **with_standard_bounds(schema), "title": "peftcli recipe"}


def known_values(owner: type[BaseModel], field: str) -> list[str]:
    """The names that a free text, list or map of a section may hold, as the schema enumerates them; empty where any."""
    section = recipe_schema()["$defs"].get(owner.__name__, {}).get("properties", {}).get(field, {})
    for place in (section, section.get("items", {}), section.get("propertyNames", {})):
        if "enum" in place:
            return [str(value) for value in place["enum"]]
    return []


def _method(definitions: dict[str, Any], description: str) -> dict[str, Any]:
    variants = []
    for name in method_names():
        own = config_class(name).model_json_schema()
        definitions |= own.pop("$defs", {})
        names = [name, *(short for short, (method, _) in short_names().items() if method == name)]
        kind = {"enum": names, "description": config_class(name).summary}
        own["properties"] = {"type": kind, **own["properties"]}
        own["required"] = ["type", *own.get("required", ())]
        definitions[f"method.{name}"] = own
        variants.append({"$ref": f"#/$defs/method.{name}"})
    return {"description": description, "anyOf": [{"enum": sorted([*method_names(), *short_names()])}, *variants]}


def _with_short_form(section: dict[str, Any], definitions: dict[str, Any], key: str) -> dict[str, Any]:
    """The section, or the value of its first key alone."""
    section = dict(section)
    description = section.pop("description", "")
    name = section["$ref"].rsplit("/", 1)[-1]
    short = dict(definitions[name]["properties"][SHORT_FORMS[key]])
    arms = short.pop("oneOf", None) or short.pop("anyOf", None) or [short]
    alone = [arm for arm in arms if arm.get("type") in ("string", "array")]
    return {"description": description, "anyOf": [*alone, section]}
