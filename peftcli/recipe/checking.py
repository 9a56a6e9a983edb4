"""A merged recipe, checked whole: every fault at once, each with its place; or the recipe itself."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from peftcli.adapters.registry import method_names, resolve_name
from peftcli.errors import Fault, FieldFault, RecipeError
from peftcli.recipe.keys import METHOD, TYPE, free_text_keys, method_class
from peftcli.recipe.rules import broken_rules, idle_settings
from peftcli.recipe.schema import Recipe
from peftcli.recipe.unknown_keys import Path, dotted, stray_keys
from peftcli.recipe.wording import found_text, remedy, wanted_at
from peftcli.redaction import REMEDY as SECRET_REMEDY
from peftcli.redaction import holds_secret
from peftcli.yaml import Node, plain

MAX_ROUNDS = 12


@dataclass
class CheckedRecipe:
    """A recipe without faults, or the faults."""

    recipe: Recipe | None
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check(root: Node) -> CheckedRecipe:
    """Checks a recipe in canonical form."""
    check = _Check(root)
    check.run()
    if check.faults:
        return CheckedRecipe(None, _in_order(check.faults))
    return CheckedRecipe(check.recipe, [], idle_settings(check.recipe) if check.recipe is not None else [])


def _in_order(faults: list[Fault]) -> list[Fault]:
    def place(fault: Fault) -> tuple[str, int, int]:
        parts = (fault.where or "").rsplit(":", 2)
        numbers = [int(part) for part in parts[1:] if part.isdigit()]
        return (parts[0], *(numbers if len(numbers) == 2 else (0, 0)))

    # `dict.fromkeys`: the rounds of validation may tell one fault twice, and the order of equals must not change
    return sorted(dict.fromkeys(faults), key=place)


class _Check:
    def __init__(self, root: Node) -> None:
        self.root = root
        self.data: dict[str, Any] = plain(root)
        self.faults: list[Fault] = []
        self.bad: set[Path] = set()
        self.recipe: Recipe | None = None

    def run(self) -> None:
        for stray in stray_keys(self.root):
            self._add(stray.path, stray.fault)
        section = self.root.child(METHOD)
        kind = None if section is None else section.child(TYPE)
        free = free_text_keys(None if kind is None else kind.value)
        for path, node in _leaves(self.root, ()):
            if path not in self.bad and (fault := _leaf_fault(path, node, free)) is not None:
                self._add(path, fault)
        self._check_method()
        for _ in range(MAX_ROUNDS):
            self._fill_required()
            if self._validate():
                break
        if self.recipe is not None:
            for rule in broken_rules(self.recipe, self._is_given):
                if not any(self._is_bad(key) for key in rule.keys):
                    self.faults.append(Fault(rule.message, self._where(rule.keys[0]), rule.fix))

    def _add(self, path: Path, fault: Fault) -> None:
        """Notes a fault and takes the value out, so that the rest can still be checked."""
        self.faults.append(fault)
        self.bad.add(path)
        # a list loses no single item, which would shift the places of those after it: the whole list goes
        cut = next((index for index, part in enumerate(path) if isinstance(part, int)), len(path))
        _remove(self.data, path[:cut])

    # -- validation by the section classes --

    def _validate(self) -> bool:
        try:
            # through JSON: strict validation then takes a list for a tuple, which YAML cannot write, and still no text
            # for a number
            self.recipe = Recipe.model_validate_json(json.dumps(self.data))
        except ValidationError as error:
            before = len(self.bad)
            self._translate(error, Recipe, ())
            # no new fault in a round that failed: what is left follows from what has been taken out
            return len(self.bad) == before
        return True

    def _check_method(self) -> None:
        section = self.data.get(METHOD)
        node = self.root.child(METHOD)
        if not isinstance(section, dict) or node is None:
            return
        kind = node.child(TYPE)
        if kind is None or not isinstance(kind.value, str):
            return self._method_without_type(node, kind)
        try:
            _, preset = resolve_name(kind.value)
        except RecipeError as error:
            self._add((METHOD, TYPE), Fault(f"method.type: {error.message}", kind.where, error.fix))
            # a method without fields that must be given, so that the other sections can still be checked
            self.data[METHOD] = {TYPE: method_names()[0]}
            return None
        own = method_class(kind.value)
        assert own is not None, "resolve_name knows it"
        for _ in range(MAX_ROUNDS):
            fields = {key: value for key, value in self.data[METHOD].items() if key != TYPE}
            try:
                own.model_validate_json(json.dumps({**preset, **fields}), strict=True)
                return None
            except ValidationError as error:
                before = len(self.bad)
                self._translate(error, own, (METHOD,))
                # every field may be right by itself and the section wrong: without progress no further round helps
                if len(self.bad) == before or (METHOD,) in self.bad:
                    self.data[METHOD] = {TYPE: method_names()[0]}
                    return None

    def _method_without_type(self, node: Node, kind: Node | None) -> None:
        if kind is None:
            fault = Fault("`method` lacks the key `type`", node.where, "for instance `type: lora`; see `peft methods`")
        else:
            fault = Fault(
                f"`method.type` is {found_text(kind)}; wanted the name of a method", kind.where, "see `peft methods`"
            )
        self._add((METHOD, TYPE), fault)
        self.data[METHOD] = {TYPE: method_names()[0]}

    def _fill_required(self) -> None:
        """Stand-ins for what is required and already known to be wrong, so that the other rules can be checked."""
        for section, key, stand_in in (("model", "base", "builtin:tiny"), ("data", "train", "builtin:support")):
            if any(path[:1] == (section,) for path in self.bad):
                inner = self.data.get(section)
                self.data[section] = {key: stand_in, **(inner if isinstance(inner, dict) else {})}
        if any(path[:1] == (METHOD,) for path in self.bad) and METHOD not in self.data:
            self.data[METHOD] = {TYPE: method_names()[0]}

    def _translate(self, error: ValidationError, section: type[BaseModel], prefix: Path) -> None:
        details = [(self._node_path((*prefix, *item["loc"])), item) for item in error.errors(include_url=False)]
        # a union tells a fault for each of its members: the deepest ones are about what the user meant
        deep = {path for path, _ in details}
        for path, item in details:
            if (
                any(other[: len(path)] == path and len(other) > len(path) for other in deep)
                and item["type"] != "value_error"
            ):
                continue
            if item["type"] == "missing":
                self._missing((*path, str(item["loc"][-1])))
            elif not self._is_bad_path(path):
                self._add(path, self._fault(path, item, section, prefix))

    def _missing(self, path: Path) -> None:
        if self._is_bad_path(path):
            return
        parent = self._node(path[:-1])
        if parent is not None and isinstance(parent.value, list):
            few = f"`{dotted(path[:-1])}` has {len(parent.value)} value{'s' if len(parent.value) != 1 else ''}"
            self._add(path[:-1], Fault(f"{few}; wanted more", parent.where, f"`peft explain {dotted(path[:-1])}`"))
            return
        name = (
            f"the recipe lacks the key `{path[0]}`"
            if len(path) == 1
            else f"`{dotted(path[:-1])}` lacks the key `{path[-1]}`"
        )
        examples = {"model": "model: Qwen/Qwen3-0.6B", "data": "data: data/train.jsonl", METHOD: "method: lora"}
        fix = (
            f"for instance `{examples[str(path[0])]}`"
            if len(path) == 1
            else f"`peft explain {dotted(path)}` describes it"
        )
        self._add(path, Fault(name, parent.where if parent is not None else self.root.where, fix))

    def _fault(self, path: Path, item: Any, section: type[BaseModel], prefix: Path) -> Fault:
        node, key = self._node(path) or self.root, dotted(path)
        kind = node.child(TYPE) if item["type"] in ("union_tag_invalid", "union_tag_not_found") else None
        node = kind or node
        where = node.where
        if item["type"] == "value_error":
            error = item["ctx"]["error"]
            message, fix = (error.message, error.fix) if isinstance(error, FieldFault) else (str(error), None)
            return Fault(f"`{key}`: {message}" if key else message, where, fix)
        wanted = wanted_at(section, path[len(prefix) :], key)
        return Fault(f"`{key}` is {found_text(node)}; wanted {wanted.text}", where, remedy(node, key, wanted))

    # -- places --

    def _node(self, path: Path) -> Node | None:
        node: Node | None = self.root
        for part in path:
            node = node.child(part) if node is not None else None
        return node

    def _node_path(self, location: Path) -> Path:
        """The part of a pydantic location that exists in the document; names of union members are skipped."""
        path: Path = ()
        node = self.root
        # pydantic names members of unions and types in its location as well; the document has no such keys
        for part in location:
            inner = node.child(part)
            if inner is not None:
                path, node = (*path, part), inner
        return path

    def _is_bad_path(self, path: Path) -> bool:
        return any(path[: len(bad)] == bad or bad[: len(path)] == path for bad in self.bad if bad and path)

    def _is_bad(self, key: str) -> bool:
        path = tuple(key.split("."))
        return any(path[: len(bad)] == bad or (bad[: len(path)] == path and len(bad) == len(path)) for bad in self.bad)

    def _is_given(self, key: str) -> bool:
        node = self._node(tuple(key.split(".")))
        return node is not None and node.value is not None

    def _where(self, key: str) -> str:
        parts = key.split(".")
        while parts:
            node = self._node(tuple(parts))
            if node is not None:
                return node.key_where or node.where
            parts.pop()
        return self.root.where


# rules that join a value already known to be wrong would be told about a stand-in
def _leaves(node: Node, path: Path) -> Iterator[tuple[Path, Node]]:
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            yield from _leaves(child, (*path, key))
    elif isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from _leaves(child, (*path, index))
    else:
        yield path, node


def _leaf_fault(path: Path, node: Node, free: Collection[str]) -> Fault | None:
    """`free`: keys whose text may hold anything."""
    key = dotted(path)
    if isinstance(node.value, float) and not math.isfinite(node.value):
        return Fault(f"`{key}` is {node.value}; wanted a finite number", node.where)
    if not isinstance(node.value, str):
        return None
    is_free = key in free
    if holds_secret(node.value, words=is_free):
        return Fault(f"`{key}` holds a secret", node.where, SECRET_REMEDY)
    if "${" in node.value and not is_free:
        return Fault(
            f"`{key}` holds `${{...}}`, and a recipe has no variables",
            node.where,
            f"write the value, or give it with --set {key}=...",
        )
    # 64 Ki characters: more than any prompt or path, and small enough to be copied into every record
    if "\0" in node.value or len(node.value) > 1 << 16:
        return Fault(f"`{key}` holds a NUL character or more than 65,536 characters", node.where)
    return None


def _remove(data: Any, path: Path) -> None:
    *parents, last = path if path else ("",)
    for part in parents:
        data = data.get(part) if isinstance(data, dict) else None
    if isinstance(data, dict):
        data.pop(last, None)
