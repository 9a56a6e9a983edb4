"""`peft migrate`: a recipe from another tool's configuration, and what becomes of each of its keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.adapters.registry import method_of_pairs
from peftcli.errors import Fault, RecipeError, StorageError
from peftcli.migrating.draft import Draft, KeyFate
from peftcli.migrating.telling import tool_of
from peftcli.migrating.tools import adapter_config, hugging_face
from peftcli.recipe.checking import check
from peftcli.recipe.foreign_names import ADVICE
from peftcli.recipe.resolved import flat_recipe
from peftcli.recipe.schema import Recipe
from peftcli.yaml import node_of, parse, plain
from peftcli.yaml_writing import flow

_BASE, _ROWS = "NAME-OR-FOLDER-OF-THE-BASE", "ROWS.jsonl"
_BESIDE = {
    adapter_config.NAME: ("training_args.json", "training_arguments.json"),
    hugging_face.NAME: ("adapter_config.json",),
}
"""Tool -> names of the files beside its own that say the rest."""


@dataclass(frozen=True)
class Migration:
    """The recipe's text and what became of each key."""

    tool: str
    source: str
    text: str
    fates: tuple[KeyFate, ...]
    to_do: tuple[str, ...]
    output: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        return {**asdict(self), "fates": [asdict(fate) for fate in self.fates], "to_do": list(self.to_do)}


def migrate(path: str | Path, output: str | Path | None = None) -> Migration:
    """The recipe of another tool's file, written to `output` (which must not exist) where one is named.

    Raises `RecipeError` for a file of no known tool or with values that no recipe can have, `StorageError`.
    """
    path = Path(path)
    target = None if output is None else Path(output)
    if target is not None and target.exists():
        raise StorageError("the output already exists", where=str(target), fix="choose another --output, or remove it")
    given = _read(path)
    tool = tool_of(given, str(path))
    draft = Draft(given)
    tool.carry(draft)
    draft.finish(ADVICE)
    fates = list(draft.fates)
    lacks = "training.batch_size" if tool is adapter_config else "method.type"
    for other in _BESIDE.get(tool.NAME, ()):
        beside = path.parent / other
        if beside.is_file() and lacks not in draft.recipe:
            fates += _also(draft, beside)
    to_do = [*_completed(draft.recipe), *draft.to_do]
    recipe, fates = _without_defaults(draft.recipe, fates, path)
    text = _text(recipe, fates, f"from {path.name} ({tool.NAME}), by `peft migrate`")
    if target is not None:
        files.write_text(target, text)
    return Migration(tool.NAME, str(path), text, tuple(fates), tuple(to_do), None if target is None else str(target))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError("no such file", where=str(path), fix="name the configuration file of another tool")
    parsed = parse(path.read_bytes(), str(path))
    if parsed.faults or parsed.node is None:
        raise RecipeError(f"{path} cannot be read", faults=parsed.faults or [Fault("it is empty", str(path))])
    document = plain(parsed.node)
    if not isinstance(document, dict):
        raise RecipeError("a configuration is a section of `key: value` lines", where=str(path))
    return document


def _also(draft: Draft, beside: Path) -> list[KeyFate]:
    """What a second file adds: its keys are told under its own name."""
    other = Draft(_read(beside))
    tool_of(other.given, str(beside)).carry(other)
    other.finish(ADVICE)
    for key, value in other.recipe.items():
        draft.recipe.setdefault(key, value)
    return [
        replace(fate, theirs=None if fate.theirs is None else f"{beside.name}: {fate.theirs}") for fate in other.fates
    ]


def _completed(recipe: dict[str, Any]) -> list[str]:
    """Fills in what no recipe can be without, and says what is left to do."""
    to_do = []
    if not recipe.get("model.base"):
        recipe["model.base"] = _BASE
        to_do.append("model.base: the file names no base")
    if not recipe.get("data.train"):
        recipe["data.train"] = _ROWS
        to_do.append("data.train: the file names no rows")
    if "method.type" not in recipe:
        recipe["method.type"] = method_of_pairs()
        to_do.append(f"method: the file names none; {method_of_pairs()} is written")
    return to_do


def _without_defaults(recipe: dict[str, Any], fates: list[KeyFate], path: Path) -> tuple[dict[str, Any], list[KeyFate]]:
    """The recipe without what is our default anyway, and fates that say so."""
    recipe = {key: value for key, value in recipe.items() if key != "method.layers_to_transform" or value is not None}
    required: dict[str, Any] = {
        key: recipe[key] for key in ("model.base", "data.train", "method.type", "task") if key in recipe
    }
    said, usual = _flat_checked(recipe, path), _flat_checked(required, path)
    # a section given whole has its fields as keys of its own
    same = {
        key
        for key in recipe
        if key not in required
        and {name: value for name, value in said.items() if _within(name, key)}
        == {name: value for name, value in usual.items() if _within(name, key)}
    }
    kept = {key: value for key, value in recipe.items() if key not in same}
    told = [
        replace(fate, outcome="default") if fate.ours in same and fate.outcome in ("carried", "added") else fate
        for fate in fates
        # what their tool does unasked, and ours too, is no news
        if not (fate.outcome == "added" and fate.ours in same)
    ]
    return kept, told


def _within(name: str, key: str) -> bool:
    return name == key or name.startswith(f"{key}.")


def _flat_checked(recipe: Mapping[str, Any], path: Path) -> dict[str, Any]:
    node = node_of(_nested(recipe), str(path))
    assert node is not None
    checked = check(node)
    if checked.faults or checked.recipe is None:
        raise RecipeError(f"values of {path.name} that no recipe can have", faults=checked.faults)
    return flat_recipe(checked.recipe)


def _nested(recipe: Mapping[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in recipe.items():
        *sections, last = key.split(".")
        inner = document
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return document


def _text(recipe: Mapping[str, Any], fates: list[KeyFate], origin: str) -> str:
    """YAML with each value's source beside it."""
    sources = {fate.ours: _source(fate) for fate in fates if fate.ours is not None}
    document = _nested(recipe)
    lines = [f"# {origin}"]
    for name in sorted(document, key=list(Recipe.model_fields).index):
        section = document[name]
        if not isinstance(section, Mapping):
            lines.append(_line("", name, section, sources.get(name)))
            continue
        lines.append(f"{name}:")
        lines += [_line("  ", key, value, sources.get(f"{name}.{key}")) for key, value in section.items()]
    return "\n".join(lines) + "\n"


def _source(fate: KeyFate) -> str:
    return fate.theirs if fate.theirs is not None else fate.remark or ""


def _line(indent: str, key: str, value: Any, source: str | None) -> str:
    line = f"{indent}{key}: {flow(value)}"
    return line if not source else f"{line:<42}  # {source}"


_HEADINGS = {
    "carried": "carried over",
    "added": "written out, since leaving it out means something else there",
    "default": "equal to the default here, left out",
    "dropped": "no counterpart",
}


def migration_text(found: Migration) -> str:
    """What `peft migrate` prints: the recipe where no file was asked for, then each key."""
    lines = [found.text] if found.output is None else [f"{found.output}, from {found.source} ({found.tool})"]
    for outcome, heading in _HEADINGS.items():
        chosen = [fate for fate in found.fates if fate.outcome == outcome]
        if chosen:
            lines += ["", f"{heading}:", *(f"  {_told(fate)}" for fate in chosen)]
    if found.to_do:
        lines += ["", "to do:", *(f"  {one}" for one in found.to_do)]
    if found.output is not None:
        lines += ["", f"next      peft validate {found.output}"]
    return "\n".join(lines)


def _told(fate: KeyFate) -> str:
    shown = json.dumps(fate.value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    left = "" if fate.theirs is None else f"{fate.theirs}: {shown}"
    right = fate.ours or ""
    remark = f" ({fate.remark})" if fate.remark else ""
    arrow = " -> " if left and right else ""
    return f"{left}{arrow}{right}{remark}"
