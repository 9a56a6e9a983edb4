"""A recipe file -> a recipe. Everything that is wrong with it is reported at once, with file, line and column."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from peftcli.adapters.registry import own_method_names
from peftcli.errors import Fault, RecipeError
from peftcli.evaluation.config import GenerationConfig
from peftcli.recipe.checking import check
from peftcli.recipe.layers import SET, merge, override_layer, read_layers
from peftcli.recipe.resolved import flat_recipe
from peftcli.recipe.schema import Recipe
from peftcli.redaction import holds_secret
from peftcli.yaml import Node, node_of

DEFAULT = "default"
"""The origin of a value that no recipe and no override gave."""
_BARE: Mapping[str, Any] = {
    "model": {"base": "builtin:tiny"},
    "data": {"train": "builtin:support"},
    "method": {"type": own_method_names()[0]},
}
"""What a recipe must have; which data and method makes no difference to the sections that are asked for."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with where it came from. Every input path in it is absolute."""

    recipe: Recipe
    path: Path
    """The file, absolute."""
    folder: Path
    """The recipe's folder, absolute."""
    origins: dict[str, str] = field(default_factory=dict)
    """Dotted key -> `file:line:column`, `--set key` or `default`, for every key."""
    warnings: tuple[str, ...] = ()
    """Settings without effect, and values that are rarely meant."""
    claims: Mapping[str, Any] = field(default_factory=dict)
    """What the recipe says of layers where training starts from an adapter: it must mean that adapter's layers."""

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.recipe.name or default_name(self.path)

    def origin(self, key: str) -> str:
        """Where a dotted key was written."""
        return self.origins.get(key, DEFAULT)

    def is_wish(self, key: str) -> bool:
        """Whether somebody wrote the key: what a run's own recipe says of it may be the copy of a default."""
        origin = self.origin(key)
        return origin.startswith(SET) or (origin != DEFAULT and not self._names_everything)

    @property
    def _names_everything(self) -> bool:
        """Whether no value that is there was left to a default, as in the recipe that a run writes and nobody does."""
        values = flat_recipe(self.recipe)
        return all(self.origin(key) != DEFAULT for key, value in values.items() if value not in (None, [], {}))


def load_recipe(
    path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = (), *, fetch: bool = True
) -> LoadedRecipe:
    """Loads and checks a recipe. `overrides`: `key=value` texts as for `--set`, or a mapping of dotted keys. `fetch`: ask
    the Hub for an adapter that training starts from and for a recipe that is extended, where it is not here.

    Raises `RecipeError` with every fault of the recipe, `StorageError` where the file may not be read, `AdapterError` or
    `HubError` where that adapter cannot be read.
    """
    path = Path(path)
    faults: list[Fault] = []
    root = read_layers(path, overrides, faults, fetch=fetch)
    checked = check(_without_extends(root), fetch=fetch)
    faults += checked.faults
    if faults or checked.recipe is None:
        count = len(faults)
        raise RecipeError(f"{path} has {count} mistake{'s' if count != 1 else ''}", faults=faults)
    recipe = checked.recipe
    if recipe.name is None:
        recipe = recipe.model_copy(update={"name": default_name(path)})
    # origins are of the recipe before defaults: a key without a node was given by nobody
    origins = {key: _origin(root, key.split(".")) for key in flat_recipe(recipe)}
    absolute = Path(os.path.abspath(path))
    return LoadedRecipe(recipe, absolute, absolute.parent, origins, tuple(checked.warnings), checked.claims)


def generation_from(
    overrides: Sequence[str], noted: Mapping[str, Any] = MappingProxyType({}), seed: int | None = None
) -> tuple[GenerationConfig, int]:
    """The `generation` section and `seed` from `--set` over what was noted of them, where there is no recipe to override.

    Raises `RecipeError` as `load_recipe` does.
    """
    faults: list[Fault] = []
    bare = node_of({**_BARE, "generation": dict(noted)} | ({} if seed is None else {"seed": seed}), "the defaults")
    assert bare is not None, "plain data is a node"
    checked = check(merge(bare, override_layer(overrides, Path.cwd(), faults)))
    faults += checked.faults
    if faults or checked.recipe is None:
        raise RecipeError("the overrides have mistakes", faults=faults)
    return checked.recipe.generation, checked.recipe.seed


def default_name(path: Path) -> str:
    """The name of a run from its recipe's file name, in the letters that a name may have."""
    # 64 letters: the name becomes a folder, of which a suffix and temporary names are made
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name.rsplit(".", 1)[0]).strip("._-")[:64]
    return name if name and not holds_secret(path.name) else "recipe"


def _without_extends(root: Node) -> Node:
    if not isinstance(root.value, dict):
        return root
    return Node({key: child for key, child in root.value.items() if key != "extends"}, root.where)


def _origin(root: Node, key: Sequence[str]) -> str:
    node: Node | None = root
    for part in key:
        node = node.child(part) if node is not None else None
    return DEFAULT if node is None else node.where
