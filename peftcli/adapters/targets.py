"""Which modules a configuration names: `all-linear`, names, paths or one regular expression.

The rules are those of the reference (a list entry matches an exact path or the end of one after a dot, a string is a
full-match regular expression), but every entry must match something: a misspelt name is an error with near names. In a
file, where it is too late to mend it, it is a warning as long as something is left to adapt.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from peftcli.adapters.oddities import named, tell
from peftcli.adapters.patterns import compile_pattern
from peftcli.errors import AdapterError, Fault

ALL_LINEAR = "all-linear"
"""The value of `target_modules` that means every linear layer of the blocks."""
_FIRST_LAYER_INDEX = re.compile(r"\.[^.]*\.(\d+)\.")


def names_path(entry: str, path: str) -> bool:
    """Whether a list entry names a path: equal to it, or its end after a dot."""
    return path == entry or path.endswith("." + entry)


def find_targets(
    candidates: Mapping[str, nn.Module],
    target_modules: str | Sequence[str],
    *,
    all_linear: Collection[str],
    exclude_modules: str | Sequence[str] | None = None,
    layers_to_transform: int | Sequence[int] | None = None,
    layers_pattern: str | Sequence[str] | None = None,
    supported: Mapping[str, nn.Module] | None = None,
    why_not: Callable[[str], str | None] = lambda path: None,
    from_file: bool = False,
) -> dict[str, nn.Module]:
    """Paths and modules that a configuration names, in the model's order.

    `candidates`: every module by path; `all_linear`: what `all-linear` stands for; `supported`: those that the method
    can adapt (a match outside is an error that says so, with the reason that `why_not` gives for a path); `from_file`: the
    configuration is that of a trained adapter.
    Raises `AdapterError` with one fault for each entry that matches nothing.
    """
    # the reference lower-cases this value, so its files may hold it in any spelling; a recipe holds ours
    if from_file and isinstance(target_modules, str) and target_modules.lower() == ALL_LINEAR:
        target_modules = ALL_LINEAR
    if target_modules == ALL_LINEAR:
        chosen = [path for path in candidates if path in all_linear]
        if not chosen:
            raise AdapterError("`target_modules: all-linear` finds no linear layer in this model")
    else:
        chosen = _matched(candidates, target_modules, supported, lenient=from_file)
    if exclude_modules is not None:
        excluded = set(_excluded(candidates, exclude_modules, lenient=from_file))
        chosen = [path for path in chosen if path not in excluded]
    if from_file and layers_to_transform == []:
        tell("layers_to_transform is empty, which stands for every layer")
    elif layers_to_transform is not None:
        # the reference applies the layer filter to list entries that name the end of a path, not to whole paths
        # a string is one pattern for whole paths, so nothing in it counts as an exact name
        exact = set() if isinstance(target_modules, str) else set(target_modules)
        chosen = _of_layers(chosen, layers_to_transform, layers_pattern, exact, lenient=from_file)
    if not chosen:
        raise AdapterError("no module is left to adapt", fix="check exclude_modules and layers_to_transform")
    if supported is not None:
        wrong = [path for path in chosen if path not in supported]
        # ten at most: a wrong pattern hits the same layer of every block
        if wrong:
            raise AdapterError(
                "targets of a kind that this method cannot adapt",
                faults=[_unsupported_fault(path, candidates[path], why_not(path)) for path in wrong[:10]],
            )
    return {path: candidates[path] for path in chosen}


def _matched(
    candidates: Mapping[str, nn.Module],
    wanted: str | Sequence[str],
    supported: Mapping[str, nn.Module] | None,
    *,
    what: str = "target_modules",
    lenient: bool = False,
) -> list[str]:
    """`lenient`: an entry that matches nothing gets a warning, as long as another one matches."""
    if isinstance(wanted, str):
        pattern = compile_pattern(wanted, what=what)
        # the root's path is empty, and a pattern such as `.*` would match it
        chosen = [path for path in candidates if path and pattern.fullmatch(path)]
        unmatched = [] if chosen else [wanted]
    else:
        chosen = [path for path in candidates if path and any(names_path(entry, path) for entry in wanted)]
        unmatched = [entry for entry in wanted if not any(names_path(entry, path) for path in chosen)]
    if unmatched and lenient and chosen:
        tell(f"{what} names what this model does not have: {named(unmatched)}")
    elif unmatched:
        near_pool = candidates if supported is None else supported
        raise UnmatchedError(
            f"{what} names modules that this model does not have",
            faults=[_unmatched_fault(entry, near_pool, what) for entry in unmatched],
        )
    return chosen


def _unsupported_fault(path: str, module: nn.Module, reason: str | None) -> Fault:
    kind = f"`{path}` is a {type(module).__name__}"
    if reason is None:
        return Fault(f"{kind}, which this method cannot adapt", fix="name its linear layers instead")
    return Fault(f"{kind} that cannot be adapted: {reason}", fix="leave it out of target_modules")


def _excluded(candidates: Mapping[str, nn.Module], wanted: str | Sequence[str], *, lenient: bool) -> list[str]:
    if not wanted and lenient:
        # the reference takes an empty `exclude_modules` as none
        return []
    try:
        return _matched(candidates, wanted, None, what="exclude_modules", lenient=lenient)
    except UnmatchedError:
        if not lenient:
            raise
        tell("exclude_modules excludes nothing in this model")
        return []


_SEVERAL = re.compile(r"[\w.]+(, *[\w.]+)+")
"""Names in one text, which is read as a regular expression."""


class UnmatchedError(AdapterError):
    """A configuration names modules that the model does not have."""


def _unmatched_fault(entry: str, candidates: Iterable[str], what: str) -> Fault:
    if _SEVERAL.fullmatch(entry):
        return Fault(
            f"`{entry}` in {what} matches nothing", fix=f"write a list: [{', '.join(re.split(r',[ ]*', entry))}]"
        )
    counts: dict[str, int] = {}
    for path in candidates:
        # the last part of a path is what users write; numbers of blocks are no names of layers
        leaf = path.rsplit(".", 1)[-1]
        if not leaf.isdigit():
            counts[leaf] = counts.get(leaf, 0) + 1
    near = difflib.get_close_matches(entry.rsplit(".", 1)[-1], counts, n=3, cutoff=0.4)
    names = near or sorted(counts, key=lambda leaf: -counts[leaf])[:10]
    # the commonest names first, where none is near
    shown = ", ".join(f"{name} ({counts[name]})" for name in names)
    return Fault(f"`{entry}` in {what} matches nothing", fix=f"{'nearest' if near else 'the model has'}: {shown}")


def layer_index(path: str, layers_pattern: str | Sequence[str] | None) -> int | None:
    """Number of the block that a path lies in, None where it lies in none.

    `layers_pattern`: names of the list of blocks, or regular expressions for the end of its path, as in the reference.
    """
    if not layers_pattern:
        # the dot in front lets a path that begins with the list of blocks match as well
        found = _FIRST_LAYER_INDEX.search("." + path)
        return int(found.group(1)) if found else None
    parts = path.split(".")
    # patterns come first and blocks second: the first name in the list decides, as in the reference
    for name in [layers_pattern] if isinstance(layers_pattern, str) else layers_pattern:
        pattern = compile_pattern(rf"(?:.*\.)?(?:{name})", what="layers_pattern")
        for place, part in enumerate(parts[:-1]):
            if part.isdecimal() and pattern.fullmatch(".".join(parts[:place])):
                return int(part)
    return None


def _of_layers(
    paths: list[str],
    layers: int | Sequence[int],
    layers_pattern: str | Sequence[str] | None,
    exact: set[str],
    *,
    lenient: bool,
) -> list[str]:
    wanted = {layers} if isinstance(layers, int) else set(layers)
    indices = {path: layer_index(path, layers_pattern) for path in paths}
    there = {index for index in indices.values() if index is not None}
    beyond = named(map(str, sorted(wanted - there)))
    chosen = [path for path in paths if path in exact or indices[path] in wanted]
    if beyond and not (lenient and chosen):
        raise AdapterError(
            f"layers_to_transform names layers that hold no target: {beyond}",
            fix=f"layers with targets: {', '.join(map(str, sorted(there))) or 'none'}",
        )
    if beyond:
        tell(f"layers_to_transform names layers that this model does not have: {beyond}")
    return chosen


def pattern_value(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """The value of a `rank_pattern`/`alpha_pattern` for a module: the first key that matches the end of its path."""
    for key, value in pattern.items():
        # `match` with `$`, not `fullmatch`, and the brackets around the key: word for word the reference's expression
        if compile_pattern(rf"(.*\.)?({key})$", what="rank_pattern or alpha_pattern").match(path):
            return value
    return default


def unmatched_pattern_keys(pattern: Mapping[str, Any], paths: Iterable[str]) -> list[str]:
    """Keys of a pattern that match none of the adapted modules."""
    known = list(paths)
    return [
        key
        for key in pattern
        if not any(compile_pattern(rf"(.*\.)?({key})$", what="pattern").match(path) for path in known)
    ]
