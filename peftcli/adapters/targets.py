"""Which modules a configuration names: `all-linear`, names, paths or one regular expression.

The rules are those of the reference (a list entry matches an exact path or the end of one after a dot, a string is a
full-match regular expression), but every entry must match something: a misspelt name is an error with near names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from peftcli.adapters.patterns import compile_pattern
from peftcli.errors import AdapterError, Fault

ALL_LINEAR = "all-linear"
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
) -> dict[str, nn.Module]:
    """Paths and modules that a configuration names, in the model's order.

    `candidates`: every module by path; `all_linear`: what `all-linear` stands for; `supported`: those that the method
    can adapt (a match outside is an error that says so, with the reason that `why_not` gives for a path).
    Raises `AdapterError` with one fault for each entry that matches nothing.
    """
    if target_modules == ALL_LINEAR:
        chosen = [path for path in candidates if path in all_linear]
        if not chosen:
            raise AdapterError("`target_modules: all-linear` finds no linear layer in this model")
    else:
        chosen = _matched(candidates, target_modules, supported)
    if exclude_modules is not None:
        excluded = set(_matched(candidates, exclude_modules, None, what="exclude_modules"))
        chosen = [path for path in chosen if path not in excluded]
    if layers_to_transform is not None:
        # the reference applies the layer filter to list entries that name the end of a path, not to whole paths
        exact = set() if isinstance(target_modules, str) else set(target_modules)
        chosen = _of_layers(chosen, layers_to_transform, layers_pattern, exact)
    if not chosen:
        raise AdapterError("no module is left to adapt", fix="check exclude_modules and layers_to_transform")
    if supported is not None:
        wrong = [path for path in chosen if path not in supported]
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
) -> list[str]:
    if isinstance(wanted, str):
        pattern = compile_pattern(wanted, what=what)
        chosen = [path for path in candidates if path and pattern.fullmatch(path)]
        unmatched = [] if chosen else [wanted]
    else:
        chosen = [path for path in candidates if path and any(names_path(entry, path) for entry in wanted)]
        unmatched = [entry for entry in wanted if not any(names_path(entry, path) for path in chosen)]
    if unmatched:
        near_pool = candidates if supported is None else supported
        raise AdapterError(
            f"{what} names modules that this model does not have",
            faults=[_unmatched_fault(entry, near_pool, what) for entry in unmatched],
        )
    return chosen


def _unsupported_fault(path: str, module: nn.Module, reason: str | None) -> Fault:
    kind = f"`{path}` is a {type(module).__name__}"
    if reason is None:
        return Fault(f"{kind}, which this method cannot adapt", fix="name its linear layers instead")
    return Fault(f"{kind} that cannot be adapted: {reason}", fix="leave it out of target_modules")


def _unmatched_fault(entry: str, candidates: Iterable[str], what: str) -> Fault:
    counts: dict[str, int] = {}
    for path in candidates:
        leaf = path.rsplit(".", 1)[-1]
        if not leaf.isdigit():
            counts[leaf] = counts.get(leaf, 0) + 1
    near = difflib.get_close_matches(entry.rsplit(".", 1)[-1], counts, n=3, cutoff=0.4)
    names = near or sorted(counts, key=lambda leaf: -counts[leaf])[:10]
    shown = ", ".join(f"{name} ({counts[name]})" for name in names)
    return Fault(f"`{entry}` in {what} matches nothing", fix=f"{'nearest' if near else 'there are'}: {shown}")


def layer_index(path: str, layers_pattern: str | Sequence[str] | None) -> int | None:
    """Number of the block that a path lies in, None where it lies in none."""
    if not layers_pattern:
        found = _FIRST_LAYER_INDEX.search("." + path)
        return int(found.group(1)) if found else None
    patterns = [layers_pattern] if isinstance(layers_pattern, str) else layers_pattern
    for name in patterns:
        found = re.match(rf"(?:^|.*?\.){re.escape(name)}\.(\d+)\.", path)
        if found:
            return int(found.group(1))
    return None


def _of_layers(
    paths: list[str], layers: int | Sequence[int], layers_pattern: str | Sequence[str] | None, exact: set[str]
) -> list[str]:
    wanted = {layers} if isinstance(layers, int) else set(layers)
    indices = {path: layer_index(path, layers_pattern) for path in paths}
    there = {index for index in indices.values() if index is not None}
    beyond = sorted(wanted - there)
    if beyond:
        raise AdapterError(
            f"layers_to_transform names layers that hold no target: {', '.join(map(str, beyond))}",
            fix=f"layers with targets: {', '.join(map(str, sorted(there))) or 'none'}",
        )
    return [path for path in paths if path in exact or indices[path] in wanted]


def pattern_value(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """The value of a `rank_pattern`/`alpha_pattern` for a module: the first key that matches the end of its path."""
    for key, value in pattern.items():
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
