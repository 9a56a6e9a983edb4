"""Which runs a comparison is made of: every method with every varied setting under every seed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from peftcli.errors import RecipeError
from peftcli.recipe import LoadedRecipe

_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]+")
_NOT_VARIED = ("name", "seed", "seeds", "output", "extends", "version", "method", "method.type", "tracking")


@dataclass(frozen=True)
class Member:
    """One run. Members of one `name` differ in their seed only."""

    name: str
    method: str
    seed: int
    vary: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    """As for `--set`, after those of the command."""
    trial: str | None = None
    """Of a run that only helps to choose settings for the members of its name: what it tries."""

    @property
    def folder(self) -> str:
        """Within the comparison's folder."""
        return f"members/{self.name}-seed-{self.seed}" if self.trial is None else f"trials/{self.name}/{self.trial}"

    @property
    def title(self) -> str:
        """As messages call it."""
        return self.folder.partition("/")[2]

    def with_settings(self, *settings: str) -> Member:
        """The same under further settings, which come last."""
        return replace(self, overrides=(*self.overrides, *settings))

    def as_trial(self, what: str, *settings: str) -> Member:
        """A trial run of it under further settings."""
        return replace(self.with_settings(*settings), trial=what)


def parse_vary(given: Sequence[str]) -> dict[str, list[str]]:
    """`KEY=a,b,c` -> values by key. Raises `RecipeError`."""
    found: dict[str, list[str]] = {}
    for text in given:
        key, sign, values = text.partition("=")
        listed = [value.strip() for value in values.split(",")]
        if not sign or not all(listed):
            raise RecipeError(f"--vary {text} is no list of values", fix="for instance --vary method.r=4,16,64")
        if key in _NOT_VARIED:
            fix = {"method": "--methods a,b", "method.type": "--methods a,b", "seed": "--seeds N", "seeds": "--seeds N"}
            raise RecipeError(f"`{key}` is not varied by --vary", fix=fix.get(key, "vary a key that changes training"))
        if key in found or len(set(listed)) < len(listed):
            raise RecipeError(f"--vary {text} names something twice", fix="name each key and each value once")
        found[key] = listed
    return found


def build_members(
    loaded: LoadedRecipe, methods: Sequence[str], vary: Mapping[str, Sequence[str]], seeds: int
) -> list[Member]:
    """In the order given, the seeds of one name together. `methods`: empty for the recipe's own.

    Raises `RecipeError` for a method that is named twice, or where there is nothing to compare.
    """
    own = loaded.recipe.method.name
    methods = list(methods) or [own]
    if len(set(methods)) < len(methods):
        raise RecipeError("--methods names a method twice", fix="name each once; --seeds repeats them")
    settings = [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]
    if len(methods) * len(settings) < 2:
        raise RecipeError("there is one thing to compare", fix="name several --methods, or a --vary KEY=a,b")
    first = loaded.recipe.seed
    return [
        Member(
            _name(method, chosen), method, first + number, chosen, _overrides(loaded, method, chosen, first + number)
        )
        for method in methods
        for chosen in settings
        for number in range(seeds)
    ]


def _name(method: str, chosen: Mapping[str, str]) -> str:
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in chosen.items()]
    return _UNSAFE.sub("-", "-".join([method, *parts])).strip("-")


def _overrides(loaded: LoadedRecipe, method: str, chosen: Mapping[str, str], seed: int) -> tuple[str, ...]:
    found = ["seeds=1", f"seed={seed}"]
    if method != loaded.recipe.method.name:
        # the recipe's fields and rate are those of its own method; another one has its own
        found += [f"method={{type: {method}}}", "training.learning_rate=auto"]
    return (*found, *(f"{key}={value}" for key, value in chosen.items()))
