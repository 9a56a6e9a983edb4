"""Schema, `explain` and `methods` are made from the classes: complete, in plain words, and agreeing with `validate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from peftcli.adapters.registry import method_names, short_names
from peftcli.errors import RecipeError
from peftcli.recipe.explaining import explain
from peftcli.recipe.foreign_names import foreign_keys, foreign_values
from peftcli.recipe.json_schema import recipe_schema
from peftcli.recipe.keys import find_keys, method_keys, names_of, recipe_keys, type_names
from peftcli.recipe.telling_methods import method_document, method_text, methods_document, methods_text

CONTRACT_SECTIONS = {
    "": "version extends name seed seeds task device threads model data method training evaluation generation checkpoint "
    "preference tracking expect output",
    "model": "base revision dtype quantization attention chat_template init_adapter",
    "data": "train validation format columns max_length append_eos truncation train_on packing streaming checks",
    "data.train": "path split revision weight rows repeat format columns",
    "training": "epochs max_steps batch_size micro_batch_size learning_rate optimizer scheduler warmup_ratio warmup_steps "
    "weight_decay max_grad_norm precision gradient_checkpointing compile kernels processes on_nonfinite early_stopping",
    "training.early_stopping": "metric patience",
    "evaluation": "every batch_size rows metrics samples",
    "generation": "max_new_tokens do_sample temperature top_p system_prompt",
    "checkpoint": "every keep best",
}


BESIDE_THE_CONTRACT = ("classification", "reward", "embedding")
"""Sections of tasks, as `preference` is one."""


def test_the_keys_are_those_of_the_contract() -> None:
    known = {key.name for key in recipe_keys()}
    for section, names in CONTRACT_SECTIONS.items():
        for name in names.split():
            assert (f"{section}.{name}" if section else name) in known
    top = [key.name for key in recipe_keys() if "." not in key.name and key.name not in BESIDE_THE_CONTRACT]
    assert top == CONTRACT_SECTIONS[""].split(), "in the contract's order"


@pytest.mark.parametrize("key", sorted({key.name for key in [*recipe_keys(), *method_keys()]}))
def test_every_key_is_documented(key: str) -> None:
    for found in find_keys(key):
        assert found.field.description, f"{found.owner.__name__}.{found.last} has no docstring"
    document = explain(key)
    text = "\n".join(document["lines"])
    assert document["key"] == key
    assert "something else" not in text
    assert max(map(len, document["lines"])) <= 80


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 129, 130, 143])
def test_every_exit_code_is_explained(code: int) -> None:
    assert explain(str(code))["code"] == code


@pytest.mark.parametrize(
    ("topic", "holds"),
    [
        ("RecipeError", "exit code 2"),
        ("MergeError", "exit code 4"),
        ("learning-rate", "training.learning_rate"),
        ("r", "method.r"),
        ("method.type", "prompt_tuning"),
        ("checkpoint", "keys: every, keep, best"),
        ("data.train.rows", "At most this many"),
        ("training.optimizer.betas", "(lion)"),
    ],
)
def test_topics_by_other_names(topic: str, holds: str) -> None:
    assert holds in "\n".join(explain(topic)["lines"])


@pytest.mark.parametrize(
    ("topic", "hint"),
    [
        ("learnin_rate", "training.learning_rate"),
        ("per_device_train_batch_size", "training.micro_batch_size"),
        ("77", "codes: 0, 1"),
        ("gradient_accumulation_steps", "training.batch_size"),
        ("qqqqqqqq", "peft schema"),
    ],
)
def test_unknown_topics_have_a_hint(topic: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        explain(topic)
    assert hint in str(caught.value)


def test_names_of_other_tools_lead_to_keys_that_exist() -> None:
    known = {key.name for key in [*recipe_keys(), *method_keys()]} | {"method.type"}
    assert set(foreign_keys().values()) <= known
    clashes = {name for name in foreign_keys() if name in {key.name for key in recipe_keys() if "." not in key.name}}
    assert not clashes, "a key of ours is never foreign at the top level"


def test_values_of_other_tools_lead_to_values_that_exist() -> None:
    for key, values in foreign_values().items():
        for found in find_keys(key):
            allowed = {*names_of(found.field.annotation), *type_names(found.field.annotation)}
            if allowed and key not in ("method.target_modules",):
                assert set(values.values()) <= allowed, key


def test_methods_are_listed_with_fields() -> None:
    assert set(methods_document()["methods"]) == set(method_names())
    for name in [*method_names(), *short_names()]:
        assert name in methods_text()
        document = method_document(name)
        assert document["fields"] or name == "full", "the baseline alone has nothing to set"
        assert all(facts["description"] for facts in document["fields"].values())
        assert max(map(len, method_text(name).splitlines())) <= 80
    with pytest.raises(RecipeError, match="unknown method"):
        method_document("lroa")


# -- the schema ----------------------------------------------------------------------------------------------------


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """A small reading of JSON Schema: the keywords that ours uses. An unknown keyword is an error of the test."""
    known = {
        "$ref",
        "$defs",
        "$schema",
        "title",
        "description",
        "default",
        "type",
        "enum",
        "const",
        "anyOf",
        "oneOf",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minLength",
        "maxLength",
        "pattern",
        "propertyNames",
        "discriminator",
    }
    assert set(schema) <= known, set(schema) - known
    if "$ref" in schema:
        return accepts(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], value, root)
    if "anyOf" in schema and not any(accepts(arm, value, root) for arm in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(accepts(arm, value, root) for arm in schema["oneOf"]) != 1:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "null": type(None),
        "number": (int, float),
        "integer": int,
    }
    if "type" in schema:
        if isinstance(value, bool) and schema["type"] in ("number", "integer"):
            return False
        if not isinstance(value, types[schema["type"]]):
            return False
    if isinstance(value, dict):
        inner = schema.get("properties", {})
        extra = schema.get("additionalProperties", True)
        if not set(schema.get("required", ())) <= set(value):
            return False
        for name, item in value.items():
            if name in inner:
                if not accepts(inner[name], item, root):
                    return False
            elif extra is False or (isinstance(extra, dict) and not accepts(extra, item, root)):
                return False
    if (
        isinstance(value, list)
        and "items" in schema
        and not all(accepts(schema["items"], item, root) for item in value)
    ):
        return False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            return False
        if value <= schema.get("exclusiveMinimum", value - 1) or value >= schema.get("exclusiveMaximum", value + 1):
            return False
    return not (isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value))


GOOD: list[dict[str, Any]] = [
    {"model": "a/b", "data": "x.jsonl", "method": "lora"},
    {
        "model": {"base": "a/b", "dtype": "bfloat16"},
        "data": ["x.jsonl", {"path": "y", "rows": 1}],
        "method": {"type": "dora", "r": 4},
    },
    {
        "model": "a/b",
        "data": {"train": "x", "validation": 0.1},
        "method": "bitfit",
        "training": {"optimizer": "sgd", "epochs": 1.5},
    },
    {
        "model": "a/b",
        "data": {"train": "x", "validation": 5},
        "method": {"type": "houlsby"},
        "training": {
            "optimizer": {"type": "lion", "betas": [0.9, 0.99]},
            "scheduler": {"type": "wsd"},
            "learning_rate": "auto",
        },
    },
    {
        "model": "a/b",
        "data": "x",
        "method": "lora",
        "evaluation": {"metrics": ["loss"]},
        "training": {"max_grad_norm": None},
    },
]
BAD: list[dict[str, Any]] = [
    {"model": "a/b", "data": "x.jsonl"},
    {"model": 3, "data": "x", "method": "lora"},
    {"model": "a/b", "data": "x", "method": "lroa"},
    {"model": "a/b", "data": "x", "method": {"type": "lora", "r": 0}},
    {"model": "a/b", "data": "x", "method": {"type": "lora", "lora_alpha": 0}},
    {"model": "a/b", "data": "x", "method": {"type": "bitfit", "r": 4}},
    {"model": "a/b", "data": "x", "method": {"r": 4}},
    {"model": "a/b", "data": "x", "method": "lora", "trainig": {}},
    {"model": "a/b", "data": "x", "method": "lora", "training": {"batch_size": 0}},
    {"model": "a/b", "data": "x", "method": "lora", "training": {"learning_rate": "fast"}},
    {"model": "a/b", "data": "x", "method": "lora", "training": {"optimizer": "adamx"}},
    {"model": "a/b", "data": "x", "method": "lora", "training": {"optimizer": {"type": "sgd", "betas": [0.1, 0.2]}}},
    {"model": "a/b", "data": {"train": "x", "validation": 1.5}, "method": "lora"},
    {"model": "a/b", "data": {"train": "x", "format": "alpacca"}, "method": "lora"},
    {"model": "a/b", "data": "x", "method": "lora", "name": "../x"},
    {"model": "a/b", "data": "x", "method": "lora", "seed": -1},
]


@pytest.mark.parametrize("recipe", GOOD)
def test_the_schema_accepts_what_validate_accepts(tmp_path: Path, recipe: dict[str, Any]) -> None:
    from peftcli.recipe import load_recipe
    from peftcli.yaml_writing import dump

    path = tmp_path / "r.yaml"
    path.write_text(dump(recipe))
    if "evaluation" in recipe:
        path.write_text(dump({**recipe, "data": {"train": "x", "validation": 0.1}}))
    load_recipe(path)
    schema = recipe_schema()
    assert accepts(schema, recipe, schema)


@pytest.mark.parametrize("recipe", BAD)
def test_the_schema_refuses_what_validate_refuses(tmp_path: Path, recipe: dict[str, Any]) -> None:
    from peftcli.recipe import load_recipe
    from peftcli.yaml_writing import dump

    path = tmp_path / "r.yaml"
    path.write_text(dump(recipe))
    with pytest.raises(RecipeError):
        load_recipe(path)
    schema = recipe_schema()
    assert not accepts(schema, recipe, schema)


def test_every_property_of_the_schema_is_described() -> None:
    schema = recipe_schema()
    sections = {"recipe": schema, **schema["$defs"]}
    bare = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, value in section.get("properties", {}).items()
        if not value.get("description") and "$ref" not in value
    ]
    assert not bare
