"""A merged recipe, checked whole: every fault at once, each with its place; or the recipe itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from peftcli.adapters.documents import AdapterDocuments
from peftcli.adapters.registry import method_names, resolve_name
from peftcli.adapters.sources import KEY as INIT_ADAPTER
from peftcli.errors import Fault, FieldFault, HubError, RecipeError
from peftcli.recipe.continuing import FIX, Agreement, agreement, start_documents, text_of, without_agreed
from peftcli.recipe.keys import METHOD, TYPE, free_text_keys, method_class
from peftcli.recipe.leaf_faults import leaf_fault, leaves
from peftcli.recipe.places import Places
from peftcli.recipe.rules import broken_rules, idle_settings
from peftcli.recipe.schema import Recipe
from peftcli.recipe.unknown_keys import Path, dotted, stray_keys
from peftcli.recipe.wording import found_text, remedy, wanted_at
from peftcli.yaml import Node, plain

MAX_ROUNDS = 12


@dataclass
class CheckedRecipe:
    """A recipe without faults, or the faults."""

    recipe: Recipe | None
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    claims: dict[str, Any] = field(default_factory=dict)
    """Rules about layers that must mean those of the adapter which training starts from."""


def check(root: Node, *, fetch: bool = True) -> CheckedRecipe:
    """Checks a recipe in canonical form. `fetch`: ask the Hub for an adapter that it starts from, where it is not here.

    Raises `AdapterError` or `HubError` where that adapter cannot be read."""
    check = _Check(root, fetch=fetch)
    check.run()
    if check.faults or check.recipe is None:
        return CheckedRecipe(None, _in_order(check.faults))
    claims = {} if check.agreed is None else check.agreed.claims
    return CheckedRecipe(check.recipe, [], [*check.warnings, *idle_settings(check.recipe)], claims)


def _in_order(faults: list[Fault]) -> list[Fault]:
    def place(fault: Fault) -> tuple[str, int, int]:
        parts = (fault.where or "").rsplit(":", 2)
        numbers = [int(part) for part in parts[1:] if part.isdigit()]
        return (parts[0], *(numbers if len(numbers) == 2 else (0, 0)))

    # `dict.fromkeys`: the rounds of validation may tell one fault twice, and the order of equals must not change
    return sorted(dict.fromkeys(faults), key=place)


class _Check:
    def __init__(self, root: Node, *, fetch: bool) -> None:
        self.root = root
        self.places = Places(root)
        self.fetch = fetch
        self.warnings: list[str] = []
        self.agreed: Agreement | None = None
        self.data: dict[str, Any] = plain(root)
        self.faults: list[Fault] = []
        self.recipe: Recipe | None = None

    def run(self) -> None:
        for stray in stray_keys(self.root):
            self._add(stray.path, stray.fault)
        section = self.root.child(METHOD)
        kind = None if section is None else section.child(TYPE)
        free = free_text_keys(None if kind is None else kind.value)
        for path, node in leaves(self.root, ()):
            if path not in self.places.bad and (fault := leaf_fault(path, node, free)) is not None:
                self._add(path, fault)
        start = self._start()
        if start is None:
            self._check_method()
        else:
            self._check_against(start)
        for _ in range(MAX_ROUNDS):
            self._fill_required()
            if self._validate():
                break
        if self.recipe is not None and self.agreed is not None:
            # past validation: a file may say more than a recipe could
            self.recipe = self.recipe.model_copy(update={METHOD: self.agreed.method})
        if self.recipe is not None:
            for rule in broken_rules(self.recipe, self.places.is_given):
                # rules that join a value already known to be wrong would be told about a stand-in
                if not any(self.places.is_bad(key) for key in rule.keys):
                    self.faults.append(Fault(rule.message, self.places.where(rule.keys[0]), rule.fix))

    def _add(self, path: Path, fault: Fault) -> None:
        """Notes a fault and takes the value out, so that the rest can still be checked."""
        self.faults.append(fault)
        self.places.bad.add(path)
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
            before = len(self.places.bad)
            self._translate(error, Recipe, ())
            # no new fault in a round that failed: what is left follows from what has been taken out
            return len(self.places.bad) == before
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
                before = len(self.places.bad)
                self._translate(error, own, (METHOD,))
                # every field may be right by itself and the section wrong: without progress no further round helps
                if len(self.places.bad) == before or (METHOD,) in self.places.bad:
                    self.data[METHOD] = {TYPE: method_names()[0]}
                    return None

    def _start(self) -> AdapterDocuments | None:
        """The adapter that training starts from; None where there is none, or it is not here and not to be fetched."""
        node = self.places.node(tuple(INIT_ADAPTER.split(".")))
        if node is None or not isinstance(node.value, str) or self.places.is_bad(INIT_ADAPTER):
            return None
        try:
            return start_documents(node.value, fetch=self.fetch)
        except HubError:
            if self.fetch:
                raise
        self.warnings.append(f"{node.value} is not in the local cache: what it says of its method is not checked")
        self.data.setdefault(METHOD, {TYPE: method_names()[0]})
        return None

    def _check_against(self, start: AdapterDocuments) -> None:
        """The recipe's method, which may be left out, beside that of the adapter which training starts from."""
        section, node = self.data.get(METHOD), self.root.child(METHOD)
        fields = dict(section) if isinstance(section, dict) else {}
        kind = fields.pop(TYPE, start.config.name)
        self.data[METHOD] = {TYPE: start.config.name}
        self.agreed = Agreement(start.config)
        if node is None:
            return
        where = (node.child(TYPE) or node).where
        try:
            name, preset = resolve_name(str(kind))
        except RecipeError as error:
            self._add((METHOD, TYPE), Fault(f"method.type: {error.message}", where, error.fix))
            return
        if name != start.config.name:
            self._add((METHOD, TYPE), Fault(text_of(TYPE, start.config.name), where, FIX))
            return
        self._compare({**preset, **fields}, start, node)

    def _compare(self, fields: dict[str, Any], start: AdapterDocuments, node: Node) -> None:
        given = without_agreed(fields, start)
        try:
            self.agreed = agreement(given, start)
        except ValidationError as error:
            self._translate(error, type(start.config), (METHOD,))
            return
        for key, wanted in self.agreed.contradictions.items():
            # what a short name such as `dora` sets has no place of its own
            place = node.child(key) or node.child(TYPE) or node
            self.faults.append(Fault(text_of(key, wanted), place.where, FIX))

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
            if any(path[:1] == (section,) for path in self.places.bad):
                inner = self.data.get(section)
                self.data[section] = {key: stand_in, **(inner if isinstance(inner, dict) else {})}
        if any(path[:1] == (METHOD,) for path in self.places.bad) and METHOD not in self.data:
            self.data[METHOD] = {TYPE: method_names()[0]}

    def _translate(self, error: ValidationError, section: type[BaseModel], prefix: Path) -> None:
        details = [(self.places.existing((*prefix, *item["loc"])), item) for item in error.errors(include_url=False)]
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
            elif not self.places.touches_bad(path):
                self._add(path, self._fault(path, item, section, prefix))

    def _missing(self, path: Path) -> None:
        if self.places.touches_bad(path):
            return
        parent = self.places.node(path[:-1])
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
        node, key = self.places.node(path) or self.root, dotted(path)
        kind = node.child(TYPE) if item["type"] in ("union_tag_invalid", "union_tag_not_found") else None
        node = kind or node
        where = node.where
        if item["type"] == "value_error":
            error = item["ctx"]["error"]
            message, fix = (error.message, error.fix) if isinstance(error, FieldFault) else (str(error), None)
            return Fault(f"`{key}`: {message}" if key else message, where, fix)
        wanted = wanted_at(section, path[len(prefix) :], key)
        return Fault(f"`{key}` is {found_text(node)}; wanted {wanted.text}", where, remedy(node, key, wanted))


def _remove(data: Any, path: Path) -> None:
    *parents, last = path if path else ("",)
    for part in parents:
        data = data.get(part) if isinstance(data, dict) else None
    if isinstance(data, dict):
        data.pop(last, None)
