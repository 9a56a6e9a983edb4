"""YAML as recipes use it: version 1.2 scalars, no surprises, and the place of every key and value.

    2e-5 is a number, `no` a string, 010 is ten; a duplicate key, an alias, a tag, a tab and a bomb are errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml import events, nodes

from peftcli import files
from peftcli.errors import Fault, RecipeError, StorageError

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_NODES = 20_000

Path_ = tuple[str | int, ...]

_NULL = {"", "~", "null", "Null", "NULL"}
_TRUE, _FALSE = {"true", "True", "TRUE"}, {"false", "False", "FALSE"}
_INTEGER = re.compile(r"[-+]?[0-9]{1,4000}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {
    ".inf": float("inf"), ".Inf": float("inf"), ".INF": float("inf"), "+.inf": float("inf"),
    "-.inf": float("-inf"), "-.Inf": float("-inf"), "-.INF": float("-inf"),
    ".nan": float("nan"), ".NaN": float("nan"), ".NAN": float("nan"),
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a key or value stands, counted from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass
class Document:
    """A parsed file: plain values, and the place of each key (of list items: of the item)."""

    value: Any
    places: dict[Path_, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    """Duplicate keys and the like: gathered, so that they are reported with what else is wrong."""


def resolve_scalar(text: str) -> Any:
    """A plain scalar by the core schema of YAML 1.2."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return _SPECIAL.get(text, text)


def read_yaml(path: Path, *, shown: str | None = None) -> Document:
    """Reads a YAML file. Raises `RecipeError` (with `file:line:column`) or `StorageError` (unreadable)."""
    name = shown or str(path)
    if path.is_dir():
        raise RecipeError("a recipe is a file, this is a folder", where=name, fix="name the .yaml file in it")
    if not path.exists():
        raise RecipeError("recipe not found", where=name, fix=_near_files(path))
    try:
        data = files.read_bounded(path, limit_bytes=MAX_BYTES)
    except StorageError as error:
        if "larger" in error.message:
            raise RecipeError("the recipe is larger than 1 MiB", where=name, fix="a recipe is a page of text") from error
        raise StorageError("the recipe cannot be read", where=name, fix="check its permissions") from error
    return parse_yaml(_decode(data, name), name)


def _near_files(path: Path) -> str:
    found = sorted({*path.parent.glob(path.name + ".y*ml"), *Path("recipes").glob(path.name), *Path("recipes").glob(path.name + ".y*ml")})
    return f"did you mean {found[0]}?" if found else "check the path; `peft init` writes a first recipe"


def _decode(data: bytes, name: str) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise RecipeError("the recipe is UTF-16", where=name, fix="save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError("the recipe is not UTF-8", where=f"{name}:{line}", fix="save it as UTF-8") from error
    if "\0" in text:
        raise RecipeError("the recipe holds a NUL character", where=name, fix="save it as plain UTF-8 text")
    return text


def parse_yaml(text: str, name: str) -> Document:
    """Parses YAML text; `name` is shown in places."""
    try:
        _check_events(text, name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document = Document(None)
        document.value = _construct(node, (), name, document) if node is not None else None
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, name) from error
    except RecursionError as error:
        raise RecipeError("the recipe nests too deeply", where=name, fix=f"at most {MAX_DEPTH} levels") from error
    return document


def parse_value(text: str, name: str) -> Any:
    """A value given on the command line: a scalar or a flow collection (`[a, b]`, `{a: 1}`)."""
    document = parse_yaml(text, name)
    if document.faults:
        raise RecipeError(document.faults[0].message, where=name, fix=document.faults[0].fix)
    return document.value


def _check_events(text: str, name: str) -> None:
    """Refuses what no recipe needs before anything is built from it."""
    depth = count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        place = Place(name, event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, events.AliasEvent) or getattr(event, "anchor", None):
            raise RecipeError("anchors and aliases are not allowed", where=str(place), fix="write the value out, or use `extends`")
        if isinstance(event, events.ScalarEvent | events.CollectionStartEvent):
            count += 1
            if event.tag is not None:
                raise RecipeError(f"tags are not allowed ({event.tag})", where=str(place), fix="a recipe is plain data: remove the tag")
        if isinstance(event, events.CollectionStartEvent):
            depth += 1
        elif isinstance(event, events.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise RecipeError("the recipe is too deep or too long", where=str(place), fix=f"at most {MAX_DEPTH} levels and {MAX_NODES} values")
        if isinstance(event, events.DocumentStartEvent) and event.explicit and count:
            raise RecipeError("a second document starts here", where=str(place), fix="one recipe a file")


def _construct(node: nodes.Node, path: Path_, name: str, document: Document) -> Any:
    place = Place(name, node.start_mark.line + 1, node.start_mark.column + 1)
    document.places.setdefault(path, place)
    if isinstance(node, nodes.ScalarNode):
        return resolve_scalar(node.value) if node.style is None else node.value
    if isinstance(node, nodes.SequenceNode):
        return [_construct(item, (*path, index), name, document) for index, item in enumerate(node.value)]
    assert isinstance(node, nodes.MappingNode)
    return dict(_pairs(node, path, name, document))


def _pairs(node: nodes.MappingNode, path: Path_, name: str, document: Document) -> Iterator[tuple[str, Any]]:
    seen: dict[str, Place] = {}
    for key_node, value_node in node.value:
        place = Place(name, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        if not isinstance(key_node, nodes.ScalarNode):
            document.faults.append(Fault("a key must be a name", str(place), "write `name: value`"))
            continue
        key = str(key_node.value)
        if key in seen:
            document.faults.append(
                Fault(f"the key `{key}` stands twice", str(place), f"it stands at line {seen[key].line} already: remove one")
            )
            continue
        seen[key] = place
        document.places[(*path, key)] = place
        yield key, _construct(value_node, (*path, key), name, document)


def _syntax_error(error: yaml.YAMLError, text: str, name: str) -> RecipeError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "not valid YAML")
    if mark is None:
        return RecipeError(f"not valid YAML: {problem}", where=name, fix="check the file")
    where = f"{name}:{mark.line + 1}:{mark.column + 1}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: mark.column + 1] or "'\\t'" in problem:
        return RecipeError("a tab; YAML needs spaces", where=where, fix="indent with spaces")
    return RecipeError(f"not valid YAML: {problem}", where=where, fix=f"look at: {line.strip()[:60]!r}")


class _Dumper(yaml.SafeDumper):
    """Writes what `read_yaml` reads back: strings that look like another type are quoted by our rules."""


def _represent_text(dumper: _Dumper, value: str) -> nodes.ScalarNode:
    looks_plain = isinstance(resolve_scalar(value), str) and "\n" not in value
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if looks_plain else '"')


_Dumper.add_representer(str, _represent_text)
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign, assignment]


def dump_yaml(value: Any) -> str:
    """YAML text of plain values, keys in their order, that `read_yaml` reads back to the same values."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
