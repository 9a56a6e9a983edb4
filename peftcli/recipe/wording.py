"""What a wrong value is and what was wanted, in plain words. What is wanted is read from the JSON Schema of its key."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from peftcli.recipe.foreign_names import foreign_values
from peftcli.redaction import redacted
from peftcli.yaml import Node

MAX_SHOWN = 60

Schema = Mapping[str, Any]
ValueKind = Literal["word", "number", "boolean", "text", "list", "section", "null"]

# names of pydantic beside those of JSON Schema
_BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}


def found_text(node: Node) -> str:
    """The value as a message shows it; never a secret, never long."""
    value = node.value
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, str):
        # before cutting: half a credential would not be known as one
        shown = "".join(character if character.isprintable() else "?" for character in redacted(value))
        return f'the text "{shown[:MAX_SHOWN]}{"..." if len(shown) > MAX_SHOWN else ""}"'
    # a number of a thousand digits would fill the screen
    text = str(value) if isinstance(value, float) or abs(value) < 10**20 else "a very large number"
    return text


@functools.cache
def _schema(section: type[BaseModel]) -> dict[str, Any]:
    return with_standard_bounds(section.model_json_schema())


def with_standard_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """Bounds that pydantic puts beside a union, under names of its own, moved to the members that are numbers."""
    bounds = {_BOUNDS[name]: schema[name] for name in _BOUNDS if isinstance(schema.get(name), (int, float))}
    found = {name: _standard(value) for name, value in schema.items() if not bounds or name not in _BOUNDS}
    for arm in found.get("anyOf", ()):
        if arm.get("type") in ("integer", "number"):
            arm |= bounds
    return found


def _standard(value: Any) -> Any:
    if isinstance(value, dict):
        return with_standard_bounds(value)
    return [_standard(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class AllowedValue:
    """What a value may be: in words, as kinds of values, and the words among which it may choose."""

    text: str
    kinds: frozenset[ValueKind] = frozenset()
    words: tuple[str, ...] = ()


_SECTIONS = {
    "model": AllowedValue("the name of a base, or a section with `base`", frozenset({"text", "section"})),
    "data": AllowedValue("a source of rows, or a section with `train`", frozenset({"text", "section"})),
    "method": AllowedValue("the name of a method, or a section with `type`", frozenset({"text", "section"})),
    "data.train": AllowedValue(
        "a path, a Hub id, `builtin:NAME`, a source with `path`, or a list of sources",
        frozenset({"text", "section", "list"}),
    ),
    "data.validation": AllowedValue(
        "auto, a fraction below 1, a row count, or a source; 0 for none",
        frozenset({"text", "number", "section", "list"}),
        ("auto",),
    ),
}


def wanted_at(section: type[BaseModel], path: Sequence[str | int], key: str) -> AllowedValue:
    """What a value at `path` within a section class may be."""
    if key in _SECTIONS:
        return _SECTIONS[key]
    if key.startswith("expect."):
        return AllowedValue('a comparison such as "< 1.2"', frozenset({"text"}))
    if not path:
        return AllowedValue("a section of `key: value` lines", frozenset({"section"}))
    root = _schema(section)
    found: list[Schema] = [root]
    for part in path:
        found = [inner for schema in found for inner in _inside(schema, part, root)]
    return _any_of([wanted for schema in found for wanted in _wanted(schema, root)])


def wanted_text(section: type[BaseModel], path: Sequence[str | int], key: str) -> str:
    """`wanted_at` in words."""
    return wanted_at(section, path, key).text


def _any_of(choices: Sequence[AllowedValue]) -> AllowedValue:
    return AllowedValue(
        _joined(list(dict.fromkeys(choice.text for choice in choices))) or "something else",
        frozenset(kind for choice in choices for kind in choice.kinds),
        tuple(dict.fromkeys(word for choice in choices for word in choice.words)),
    )


def _inside(schema: Schema, part: str | int, root: Schema) -> list[Schema]:
    schema = _resolved(schema, root)
    found: list[Schema] = []
    for arm in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        found += _inside(arm, part, root)
    if isinstance(part, int):
        # positions of a fixed list have one kind here (two betas), so the first speaks for all
        items = schema.get("prefixItems") or ([schema["items"]] if "items" in schema else [])
        return found + items[:1]
    if part in schema.get("properties", {}):
        found.append(schema["properties"][part])
    elif isinstance(schema.get("additionalProperties"), Mapping):
        found.append(schema["additionalProperties"])
    return found


def _resolved(schema: Schema, root: Schema) -> Schema:
    reference = schema.get("$ref")
    return root["$defs"][reference.rsplit("/", 1)[-1]] if reference else schema


def _wanted(schema: Schema, root: Schema) -> list[AllowedValue]:
    schema = _resolved(schema, root)
    mapping = schema.get("discriminator", {}).get("mapping")
    if mapping:
        # the members of a tagged union are known by their names; their sections would be pages
        return [_word(name) for name in mapping]
    if arms := (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        found = [wanted for arm in arms for wanted in _wanted(arm, root)]
        # where any number is allowed, a whole one is too
        ranges = {_bounds(_resolved(arm, root)) for arm in arms if _resolved(arm, root).get("type") == "number"}
        return [wanted for wanted in found if wanted.text not in {f"a whole number{bounds}" for bounds in ranges}]
    if "const" in schema:
        return [_word(schema["const"])]
    if "enum" in schema:
        return [_word(word) for word in schema["enum"]]
    return _typed(schema, root)


def _word(word: object) -> AllowedValue:
    return AllowedValue(f"`{word}`", frozenset({"word"}), (str(word),))


def _typed(schema: Schema, root: Schema) -> list[AllowedValue]:
    def one(text: str, kind: ValueKind) -> list[AllowedValue]:
        return [AllowedValue(text, frozenset({kind}))]

    match schema.get("type"):
        case "integer":
            return one("a whole number" + _bounds(schema), "number")
        case "number":
            return one("a number" + _bounds(schema), "number")
        case "boolean":
            return one("true or false", "boolean")
        case "string":
            return one("text", "text")
        case "array":
            return one(_list_text(schema, root), "list")
        case "object":
            return one("a section of `name: value` lines", "section")
        case "null":
            return one("null", "null")
        case _:
            return []


def _list_text(schema: Schema, root: Schema) -> str:
    items = schema.get("prefixItems")
    if items:
        return f"a list of {len(items)} values, each {_any_of(_wanted(items[0], root)).text}"
    return f"a list ({_any_of(_wanted(schema['items'], root)).text} each)" if schema.get("items") else "a list"


def _bounds(schema: Schema) -> str:
    parts = []
    if "exclusiveMinimum" in schema:
        parts.append(f"above {schema['exclusiveMinimum']:g}")
    if "minimum" in schema:
        parts.append(f"of at least {schema['minimum']:g}")
    if "exclusiveMaximum" in schema:
        parts.append(f"below {schema['exclusiveMaximum']:g}")
    if "maximum" in schema:
        parts.append(f"of at most {schema['maximum']}")
    return " " + " and ".join(parts) if parts else ""


def _joined(texts: Sequence[str]) -> str:
    *first, last = texts if texts else [""]
    return f"{', '.join(first)} or {last}" if first else last


def remedy(node: Node, key: str, wanted: AllowedValue) -> str | None:
    """What to write instead, where it can be guessed."""
    value = node.value
    if key == "version":
        return "a recipe of a later version needs a newer peftcli"
    if "list" in wanted.kinds and wanted.kinds <= {"list", "null"} and isinstance(value, (str, int, float)):
        return f"write a list: [{str(value)[:MAX_SHOWN]}]"
    if isinstance(value, str):
        return _text_remedy(value, key, wanted)
    if isinstance(value, (bool, int, float)) and "text" in wanted.kinds and "number" not in wanted.kinds:
        return f'put it in quotes: "{str(value).lower() if isinstance(value, bool) else value}"'
    return None


_YES = ("yes", "on", "y", "true")
_NO = ("no", "off", "n", "false")


def _text_remedy(value: str, key: str, wanted: AllowedValue) -> str | None:
    theirs = foreign_values().get(key, {})
    ours = theirs.get(value) or theirs.get(value.lower())
    near = [ours] if ours else difflib.get_close_matches(value.lower(), wanted.words, n=1, cutoff=0.6)
    if near:
        return f"did you mean `{near[0]}`?"
    if "boolean" in wanted.kinds and value.lower() in (*_YES, *_NO):
        return f"write {'`true`' if value.lower() in _YES else '`false`'}, without quotes"
    return _number_remedy(value) if "number" in wanted.kinds else None


def _number_remedy(value: str) -> str | None:
    """`1_000`, `1,000` and `0,001` as numbers; a single comma that does not stand before three digits is a point."""
    bare = value.replace("_", "").strip()
    thousands = re.fullmatch(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?", bare) is not None
    bare = bare.replace(",", "" if thousands else ".")
    try:
        float(bare)
    except ValueError:
        return None
    return f"write the number alone: {bare[:30]}"
