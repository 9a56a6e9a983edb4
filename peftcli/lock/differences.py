"""Where two locks part, item by item, causes before consequences."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftcli.errors import CheckFailed, Fault
from peftcli.lock.document import Lock, SplitLock
from peftcli.lock.places import absolute, is_place, without_places
from peftcli.recipe.loading import DEFAULT
from peftcli.yaml_writing import flow

InputKind = Literal["recipe", "base", "init_adapter", "tokenizer", "data", "settings", "package", "environment"]

ABSENT = "absent"
_SHOWN = 60
_HASH_DIGITS = 64


@dataclass(frozen=True)
class Difference:
    """One item whose value is not the locked one."""

    kind: InputKind
    item: str
    locked: str
    found: str
    where: str | None = None
    """Where the value found was written."""

    @property
    def text(self) -> str:
        """The item with both values, as messages print it."""
        return f"{self.item}: locked {self.locked}, here {self.found}"

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return dict(vars(self))


def input_differences(locked: Lock, found: Lock, folder: Path) -> list[Difference]:
    """Every input that differs. What follows from another one (row order from the seed) is left out.

    `folder`: where the relative paths of `found` start.
    """
    causes = [
        *_recipe(locked, found, folder),
        *_mapping("package", "package {}", locked.packages, found.packages),
        *_mapping("base", "base file {}", locked.base.files, found.base.files),
        *_init_adapter(locked, found),
        *_data_files(locked, found),
        *_mapping("settings", "{}", *_shared(locked.settings, found.settings)),
    ]
    kinds = {difference.kind for difference in causes}
    if "base" not in kinds:
        # a base of other files has other weights: that it differs is told already
        causes += _fingerprint(locked, found)
    # a base's files hold its tokenizer; only a template that the recipe sets can differ by itself
    if "base" not in kinds or locked.tokenizer.template_sha256 != found.tokenizer.template_sha256:
        causes += _tokenizer(locked, found)
    # other rows follow from any of these; told without a cause they would hide it
    explained = kinds & {"base", "init_adapter", "tokenizer", "data", "package"} or any(
        difference.item in ("seed", "seeds") or difference.item.startswith("data.") for difference in causes
    )
    return causes if explained else [*causes, *_rows(locked, found)]


def environment_differences(locked: Lock, found: Lock) -> list[Difference]:
    """What differs of the description."""
    return list(_mapping("environment", "{}", locked.environment, found.environment))


def difference_error(headline: str, differences: Sequence[Difference], fix: str) -> CheckFailed:
    """One error for all differences; the fix stands once, with the last."""
    last = len(differences) - 1
    prefix = f"{headline}: " if last == 0 else ""
    faults = [
        Fault(prefix + difference.text, difference.where, fix if number == last else None)
        for number, difference in enumerate(differences)
    ]
    return CheckFailed(headline, faults=faults)


def _recipe(locked: Lock, found: Lock, folder: Path) -> Iterator[Difference]:
    for key in [*locked.recipe, *(key for key in found.recipe if key not in locked.recipe)]:
        one, other = locked.value(key), found.value(key)
        origin = found.recipe[key][1] if key in found.recipe else DEFAULT
        # a key that the lock's version did not have is no difference while nobody sets it
        is_new = key not in locked.recipe and origin == DEFAULT
        # a branch named in one recipe and its commit in the other are the same base
        same_commit = (key == "model.revision" and found.base.commit == locked.base.commit is not None) or (
            key == "model.init_adapter" and _commit(found) == _commit(locked) is not None
        )
        if not (is_new or same_commit) and without_places(one) != without_places(other):
            yield Difference("recipe", key, _shown(one), _shown(other), _place(origin, folder))


def _place(origin: str, folder: Path) -> str | None:
    """Where a value was written, as seen from the working directory."""
    path, _, line = origin.rpartition(":")
    if is_place(path) and line.isdigit():
        return f"{os.path.relpath(absolute(path, folder))}:{line}"
    return None if origin == DEFAULT else origin


def _mapping(kind: InputKind, item: str, locked: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Difference]:
    for name in [*locked, *(name for name in found if name not in locked)]:
        one, other = locked.get(name, ABSENT), found.get(name, ABSENT)
        if one != other:
            yield Difference(kind, item.format(name), *_pair(one, other))


def _commit(lock: Lock) -> str | None:
    return None if lock.init_adapter is None else lock.init_adapter.commit


def _init_adapter(locked: Lock, found: Lock) -> Iterator[Difference]:
    one = {} if locked.init_adapter is None else locked.init_adapter.files
    other = {} if found.init_adapter is None else found.init_adapter.files
    # that one of the two has none is told as the recipe's key
    return _mapping("init_adapter", "file {} of model.init_adapter", one, other) if one and other else iter(())


def _shared(locked: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both know: a lock made before the weights were loaded lacks some settings."""
    names = [name for name in locked if name in found]
    return {name: locked[name] for name in names}, {name: found[name] for name in names}


def _data_files(locked: Lock, found: Lock) -> Iterator[Difference]:
    """Files are known by their content: a moved or renamed one is the same file."""
    one, other = _files(locked), _files(found)
    # by hash, not by name; a file that changed in its place is gone and new under one name
    gone = {name: sha for name, sha in one.items() if sha not in other.values()}
    new = {name: sha for name, sha in other.items() if sha not in one.values()}
    for name in [*gone, *(name for name in new if name not in gone)]:
        yield Difference("data", f"data file {name}", *_pair(one.get(name, ABSENT), other.get(name, ABSENT)))


def _files(lock: Lock) -> dict[str, str]:
    return {name: sha for source in lock.data.sources for name, sha in source.files.items()}


def _fingerprint(locked: Lock, found: Lock) -> Iterator[Difference]:
    one, other = locked.base.fingerprint, found.base.fingerprint
    # fingerprints that an older version made another way say nothing here; the hashes of the files stand above
    if one and other and one.get("scheme") == other.get("scheme") and one["exact"] != other["exact"]:
        yield Difference("base", "base weights as loaded", *_pair(one["exact"], other["exact"]))


def _tokenizer(locked: Lock, found: Lock) -> Iterator[Difference]:
    one, other = locked.tokenizer, found.tokenizer
    if one.sha256 != other.sha256:
        yield Difference("tokenizer", "tokenizer", *_pair(one.sha256, other.sha256))
    if one.template_sha256 != other.template_sha256:
        yield Difference(
            "tokenizer", "chat template", *_pair(one.template_sha256 or ABSENT, other.template_sha256 or ABSENT)
        )


def _rows(locked: Lock, found: Lock) -> Iterator[Difference]:
    for name, one, other in (
        ("training", locked.data.train, found.data.train),
        ("validation", locked.data.validation, found.data.validation),
    ):
        if one != other:
            yield from _split(name, one, other)


def _split(name: str, one: SplitLock | None, other: SplitLock | None) -> Iterator[Difference]:
    if one is None or other is None:
        yield Difference(
            "data", f"{name} rows", ABSENT if one is None else "present", ABSENT if other is None else "present"
        )
        return
    if one.order_sha256 != other.order_sha256:
        yield Difference("data", f"order of the {name} rows", *_pair(one.order_sha256, other.order_sha256))
    if one.stream_sha256 != other.stream_sha256:
        yield Difference("data", f"tokens of the {name} rows", *_pair(one.stream_sha256, other.stream_sha256))


def _pair(one: Any, other: Any) -> tuple[str, str]:
    return _shown(one), _shown(other)


def _shown(value: Any) -> str:
    if isinstance(value, str) and len(value) == _HASH_DIGITS:
        # twelve digits tell any two files apart to a reader; the lock has them all
        return f"{value[:12]}…"
    text = "nothing" if value is None else value if isinstance(value, str) else flow(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
