"""Which runs a comparison is made of: every method with every varied setting under every seed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from peftcli.errors import RecipeError
from peftcli.recipe import LoadedRecipe, load_recipe

_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]+")
_MAX_NAME = 80
"""Of a folder, behind which a seed or trial still fits."""
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
    """`KEY=a,b,c` -> values by key; commas within lists, sections and quotes part nothing. Raises `RecipeError`."""
    found: dict[str, list[str]] = {}
    for text in given:
        key, sign, values = text.partition("=")
        key, listed = key.strip(), [value.strip() for value in _parted(values)]
        if not sign or not all(listed):
            raise RecipeError(f"--vary {text} is no list of values", fix="for instance --vary method.r=4,16,64")
        if key in _NOT_VARIED:
            fix = {"method": "--methods a,b", "method.type": "--methods a,b", "seed": "--seeds N", "seeds": "--seeds N"}
            raise RecipeError(f"`{key}` is not varied by --vary", fix=fix.get(key, "vary a key that changes training"))
        if key in found or len(set(listed)) < len(listed):
            raise RecipeError(f"--vary {text} names something twice", fix="name each key and each value once")
        found[key] = listed
    return found


def _parted(values: str) -> list[str]:
    """At the commas that stand in no bracket and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in values:
        if letter == "," and depth == 0 and not quote:
            parts.append("")
            continue
        parts[-1] += letter
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and parts[-1].strip() == letter:
            # within a bare word an apostrophe is a letter
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
    return parts


def build_members(
    loaded: LoadedRecipe,
    methods: Sequence[str],
    vary: Mapping[str, Sequence[str]],
    seeds: int,
    overrides: Sequence[str] = (),
) -> list[Member]:
    """In the order given, the seeds of one name together. `methods`: empty for the recipe's own; `overrides`: those that
    the recipe was loaded with.

    Raises `RecipeError` for a method that is named twice, or where there is nothing to compare.
    """
    methods = list(methods) or [loaded.recipe.method.name]
    if not all(methods):
        raise RecipeError("--methods names nothing between two commas", fix="for instance --methods lora,ia3")
    if len(set(methods)) < len(methods):
        raise RecipeError("--methods names a method twice", fix="name each once; --seeds repeats them")
    settings = [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]
    if len(methods) * len(settings) < 2:
        raise RecipeError("there is one thing to compare", fix="name several --methods, or a --vary KEY=a,b")
    chosen = [(method, setting) for method in methods for setting in settings]
    names = _names(chosen)
    foreign = {method: _foreign(loaded, overrides, method) for method in methods}
    return [
        Member(name, method, seed, setting, _overrides(foreign[method], setting, seed))
        for name, (method, setting) in zip(names, chosen, strict=True)
        for seed in range(loaded.recipe.seed, loaded.recipe.seed + seeds)
    ]


def _names(chosen: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """A name for each, which is a folder too: short, and its own on file systems that take capitals for small letters."""
    found: list[str] = []
    taken: set[str] = set()
    for method, setting in chosen:
        name = plain = _name(method, setting)
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.lower())
        found.append(name)
    return found


def _name(method: str, setting: Mapping[str, str]) -> str:
    leaves = [key.rpartition(".")[2] for key in setting]
    # two keys may end alike: `data.train.rows` and `evaluation.rows`
    keys = [key if leaves.count(leaf) > 1 else leaf for key, leaf in zip(setting, leaves, strict=True)]
    parts = [f"{key}-{value}" for key, value in zip(keys, setting.values(), strict=True)]
    return _UNSAFE.sub("-", "-".join([method, *parts])).strip("-.")[:_MAX_NAME].rstrip("-.") or "member"


def _foreign(loaded: LoadedRecipe, overrides: Sequence[str], method: str) -> tuple[str, ...]:
    """What makes the recipe one of another method; nothing for the method that it has, as it writes it: a recipe of `dora`
    is none of `lora`."""
    switch = f"method={{type: {method}}}"
    try:
        own = load_recipe(loaded.path, [*overrides, switch]).recipe.method == loaded.recipe.method
    except RecipeError:
        # told with all that is wrong when it is planned
        own = False
    # the recipe's fields and rate are those of its own method; another one has its own
    return () if own else (switch, "training.learning_rate=auto")


def _overrides(foreign: Sequence[str], setting: Mapping[str, str], seed: int) -> tuple[str, ...]:
    return ("seeds=1", f"seed={seed}", *foreign, *(f"{key}={value}" for key, value in setting.items()))
