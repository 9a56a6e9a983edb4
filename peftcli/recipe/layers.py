"""The layers of a recipe: files linked by `extends`, then overrides; merged so that each value keeps its origin."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.data.config import AUTO
from peftcli.errors import Fault, RecipeError, StorageError
from peftcli.recipe.canonical import canonical
from peftcli.recipe.checking import check
from peftcli.recipe.hub_recipe import hub_recipe, names_hub_recipe
from peftcli.recipe.keys import TYPE
from peftcli.recipe.paths import BUILTIN_PREFIX, absolute, is_path
from peftcli.yaml import MAX_BYTES, Node, node_of, parse, parse_value

MAX_EXTENDS = 8
ALTERNATIVES = {"training": (("epochs", "max_steps"), ("warmup_ratio", "warmup_steps"))}
"""Two keys of which one speaks: naming one in an upper layer takes the other out of the layers below."""
SET = "--set"
"""How the origin of an overridden value begins."""
_ROWS = frozenset({".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"})
"""Ends of names that are those of data."""


def read_layers(
    path: Path, overrides: Sequence[str] | Mapping[str, Any], faults: list[Fault], *, fetch: bool = True
) -> Node:
    """The merged recipe with canonical keys and absolute paths. Faults of content are gathered in `faults`.

    `fetch`: ask the Hub for a recipe that is extended. Raises `RecipeError` when a file cannot be read as a recipe at all,
    `HubError` for a recipe of the Hub that cannot be had.
    """
    merged = _file_with_bases(path, (), faults, fetch=fetch)
    return merge(merged, override_layer(overrides, Path(os.path.abspath(path)).parent, faults))


def _file_with_bases(
    path: Path, chain: tuple[Path, ...], faults: list[Fault], *, fetch: bool, where: str | None = None
) -> Node:
    node = canonical(_read(path, where), faults)
    folder = Path(os.path.abspath(path)).parent
    node = absolute_paths(node, folder)
    extends = node.child("extends")
    if extends is None or extends.value is None:
        return node
    chain = (*chain, Path(os.path.realpath(path)))
    base = _base_path(extends, folder, chain, fetch=fetch)
    return merge(_file_with_bases(base, chain, faults, fetch=fetch, where=extends.where), node)


def _base_path(extends: Node, folder: Path, chain: tuple[Path, ...], *, fetch: bool) -> Path:
    if not isinstance(extends.value, str) or not extends.value or "://" in extends.value:
        raise RecipeError(
            "`extends` must be the path of a recipe file, or owner/name@revision of the Hub",
            where=extends.where,
            fix="extends: base.yaml",
        )
    if names_hub_recipe(extends.value, folder):
        base = hub_recipe(extends.value, extends.where, fetch=fetch)
    else:
        base = folder / Path(extends.value).expanduser()
    if Path(os.path.realpath(base)) in chain:
        raise RecipeError(
            f"`extends: {extends.value}` leads back to itself", where=extends.where, fix="break the circle"
        )
    if len(chain) > MAX_EXTENDS:
        raise RecipeError(f"more than {MAX_EXTENDS} recipes extend one another", where=extends.where, fix="merge some")
    # messages name files as a user would type them
    return Path(os.path.relpath(base)) if base.is_relative_to(Path.cwd()) else base


def _require_utf8(path: Path) -> None:
    """A run keeps the paths of its recipe in files of UTF-8, which have no place for the bytes of another encoding."""
    try:
        os.path.abspath(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecipeError(
            "a folder or file name on the way to the recipe is not UTF-8, so that no record of a run can name it",
            where=str(path.absolute()),
            fix="rename it, or move the recipe and its data to a folder whose name is UTF-8",
        ) from error


def _read(path: Path, where: str | None) -> Node:
    _require_file(path, where)
    _require_utf8(path)
    try:
        data = files.read_bounded(path, limit_bytes=MAX_BYTES)
    except StorageError as error:
        # a file at the bound fails without a cause of the system; one that may not be read has it
        if error.__cause__ is None:
            raise RecipeError(error.message, where=str(path), fix="a recipe is a page of text; is this one?") from error
        raise StorageError("no permission to read the recipe", where=str(path), fix=f"chmod u+r {path}") from error
    parsed = parse(data, str(path))
    # somebody gave the data file instead of the recipe: faults of YAML in its rows help nobody
    if parsed.faults and path.suffix.lower() in _ROWS:
        raise RecipeError(
            f"{path} holds rows, not a recipe", where=where, fix=f"peft init --data {path} writes a recipe for them"
        )
    if parsed.faults:
        raise RecipeError(_headline(path, parsed.faults), faults=_with_unknown_keys(parsed.node, parsed.faults))
    if parsed.node is None:
        raise RecipeError("the recipe is empty", where=str(path), fix="start from `peft init`")
    if not isinstance(parsed.node.value, dict):
        raise RecipeError("a recipe is a section of `key: value` lines", where=parsed.node.where, fix="see `peft init`")
    return parsed.node


def _with_unknown_keys(node: Node | None, faults: list[Fault]) -> list[Fault]:
    """A file with duplicate keys or tags can still be checked: its other faults are reported with them."""
    # with `extends` a key may be explained by the file below: it is not checked alone
    if node is None or not isinstance(node.value, dict) or node.child("extends") is not None:
        return faults
    found = list(faults)
    return found + check(absolute_paths(canonical(node, found), Path.cwd())).faults


def _headline(path: Path, faults: Sequence[Fault]) -> str:
    return f"{path} has {len(faults)} mistake{'s' if len(faults) > 1 else ''}"


def _require_file(path: Path, where: str | None) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise StorageError("no permission to read the recipe", where=str(path), fix="check the folder") from error
        raise RecipeError(f"recipe not found: {path}", where=where, fix=_near_files(path)) from error
    if stat.S_ISDIR(mode):
        # `*.y*ml`: both `.yaml` and `.yml`
        inside = sorted(file.name for file in path.glob("*.y*ml"))[:3]
        hint = f"name one of its files: {', '.join(inside)}" if inside else "name a recipe file"
        raise RecipeError(f"{path} is a folder, not a recipe", where=where, fix=hint)
    if not stat.S_ISREG(mode):
        raise RecipeError(f"{path} is not a regular file", where=where, fix="name a recipe file")


def _near_files(path: Path) -> str:
    places = [path.parent, path.parent / "recipes", Path("recipes")]
    # at most 200 of a folder: comparing names is quadratic in their length
    known = {str(file): file for place in places if place.is_dir() for file in sorted(place.glob("*.y*ml"))[:200]}
    same = [shown for shown, file in known.items() if file.stem == path.stem]
    near = same or difflib.get_close_matches(str(path), known, n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else "check the path, or start from `peft init`"


# -- overrides ---------------------------------------------------------------------------------------------------


def override_layer(overrides: Sequence[str] | Mapping[str, Any], folder: Path, faults: list[Fault]) -> Node:
    """All overrides as one layer; a later one wins."""
    merged = Node({}, SET)
    for key, node in _assignments(overrides, faults):
        if key == "extends":
            faults.append(Fault("`extends` cannot be set from outside", node.where, "write it in the recipe"))
            continue
        # from the innermost part outwards: `a.b.c=1` becomes a: {b: {c: 1}}
        for part in reversed(key.split(".")):
            node = Node({part: Node(node.value, node.where, node.where)}, node.where)
        layer = _absolute_overrides(canonical(node, faults), folder)
        merged = merge(merged, layer)
    return merged


def _assignments(overrides: Sequence[str] | Mapping[str, Any], faults: list[Fault]) -> list[tuple[str, Node]]:
    found: list[tuple[str, Node]] = []
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            node = node_of(value, f"{SET} {key}")
            if node is None or not _is_key(str(key)):
                faults.append(Fault(f"an override of `{key}` that no recipe could hold", f"{SET} {key}"))
            else:
                found.append((str(key), node))
        return found
    for text in [overrides] if isinstance(overrides, str) else overrides:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not _is_key(key):
            faults.append(
                Fault(f"`{SET} {text[:60]}` is not an assignment", f"{SET} {key[:60]}", f"{SET} training.epochs=1")
            )
            continue
        parsed = parse_value(value, f"{SET} {key}")
        faults.extend(parsed.faults)
        if parsed.node is not None and not parsed.faults:
            found.append((key, parsed.node))
    return found


def _is_key(key: str) -> bool:
    return len(key) < 200 and all(part and part.isprintable() for part in key.split("."))


# -- merging -----------------------------------------------------------------------------------------------------


def merge(lower: Node, upper: Node) -> Node:
    """Deep merge: sections key by key, everything else replaced. A section of another `type` replaces the whole one."""
    return _merge(lower, upper, ())


def _merge(lower: Node, upper: Node, path: tuple[str, ...]) -> Node:
    if not isinstance(lower.value, dict) or not isinstance(upper.value, dict):
        return upper
    # the keys of one method or optimizer mean nothing to another
    kinds = [node.value.get(TYPE) for node in (lower, upper) if isinstance(node.value, dict)]
    if all(kind is not None for kind in kinds) and len({str(kind.value) for kind in kinds if kind}) > 1:
        return upper
    merged = dict(lower.value)
    for one, other in ALTERNATIVES.get(".".join(path), ()):
        for named, dropped in ((one, other), (other, one)):
            # null names nothing: `max_steps: null` in the upper layer leaves the epochs below as they are
            if named in upper.value and dropped not in upper.value and upper.value[named].value is not None:
                merged.pop(dropped, None)
    for key, child in upper.value.items():
        merged[key] = _merge(merged[key], child, (*path, key)) if key in merged else child
    return Node(merged, lower.where, lower.key_where)


# -- paths -------------------------------------------------------------------------------------------------------


def absolute_paths(node: Node, folder: Path) -> Node:
    """Every path of a layer made absolute, so that it means the same wherever the recipe goes."""
    return _with_paths(
        node, lambda value, always: absolute(value, folder) if always or is_path(value, folder) else value
    )


def _absolute_overrides(node: Node, folder: Path) -> Node:
    """A path given on the command line is relative to the working directory, or to the recipe if it is only there."""
    here = Path.cwd()

    def resolve(value: str, always: bool) -> str:
        for place in (here, folder):
            if (always or is_path(value, place)) and os.path.exists(absolute(value, place)):
                return absolute(value, place)
        return absolute(value, here) if always or is_path(value, here) else value

    return _with_paths(node, resolve)


def _with_paths(node: Node, resolve: Any) -> Node:
    """Applies `resolve(value, always a path?)` to every value that may name a path."""

    def text(found: Node, always: bool = False) -> Node:
        if not isinstance(found.value, str) or not found.value or found.value.startswith(BUILTIN_PREFIX):
            return found
        # `${` and NUL are faults that `checking` tells; a path made of them would hide them
        if "\0" in found.value or "${" in found.value:
            return found
        return Node(resolve(found.value, always), found.where, found.key_where)

    def adapter(found: Node) -> Node:
        # a revision may hold slashes: what is before it decides
        identifier, at, _ = str(found.value).partition("@")
        return found if at and resolve(identifier, False) == identifier else text(found)

    def source(found: Node) -> Node:
        if isinstance(found.value, list):
            return Node([source(item) for item in found.value], found.where, found.key_where)
        return _replaced(found, {"path": text}) if isinstance(found.value, dict) else text(found)

    def validation(found: Node) -> Node:
        # `auto` is a word of `data.validation`, not a file of that name
        return found if found.value == AUTO else source(found)

    model = {"base": text, "init_adapter": adapter, "chat_template": lambda found: text(found, always=True)}
    sections = {
        "model": lambda found: _replaced(found, model),
        "data": lambda found: _replaced(found, {"train": source, "validation": validation}),
    }
    return _replaced(node, sections)


def _replaced(node: Node, change: Mapping[str, Any]) -> Node:
    if not isinstance(node.value, dict):
        return node
    children = {key: change[key](child) if key in change else child for key, child in node.value.items()}
    return Node(children, node.where, node.key_where)
