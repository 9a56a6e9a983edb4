"""A lock of everything that a run takes in, gathered from what planning has opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peftcli import files
from peftcli.data.builtin import builtin_data, data_names
from peftcli.data.facts import SplitFacts
from peftcli.lock.document import AdapterLock, BaseLock, DataLock, Lock, SourceLock, SplitLock, TokenizerLock
from peftcli.lock.environment import describe
from peftcli.lock.places import relative
from peftcli.lock.used_packages import package_versions
from peftcli.models.fingerprint import Fingerprint
from peftcli.models.load import fetch_weights
from peftcli.models.snapshot import snapshot
from peftcli.planning.plan import Prepared
from peftcli.recipe import LoadedRecipe, flat_recipe
from peftcli.training.seeding import determinism

NOT_INPUTS = ("version", "name", "output", "tracking", "expect", "extends")
"""Recipe keys that change nothing that is computed."""


@dataclass(frozen=True)
class LoadedBase:
    """What is known only once the weights are loaded."""

    fingerprint: Fingerprint
    attention: str


def input_lock(prepared: Prepared, folder: Path, values: Mapping[str, Any]) -> Lock:
    """The lock of a run's inputs before its weights are loaded, with paths relative to `folder`.

    `values`: dotted recipe keys that were `auto`, and what they became.
    """
    loaded = prepared.loaded
    recipe = loaded.recipe
    return Lock(
        source=relative(loaded.path, folder),
        recipe=_recipe(loaded, folder, values),
        seeds=[recipe.seed + number for number in range(recipe.seeds)],
        base=_base(prepared, folder),
        tokenizer=TokenizerLock(
            sha256=prepared.data.facts.tokenizer_sha256, template_sha256=prepared.data.facts.template_sha256
        ),
        data=_data(prepared, folder),
        init_adapter=_init_adapter(prepared, folder),
        settings=_settings(prepared.plan.resolved.device),
        packages=package_versions(recipe),
        environment=describe(prepared.plan.resolved.device),
    )


def with_loaded(lock: Lock, base: LoadedBase, device: str) -> Lock:
    """The lock with what is known only once the weights are loaded."""
    return lock.model_copy(
        update={
            "base": lock.base.model_copy(update={"fingerprint": base.fingerprint.to_dict()}),
            "settings": {**_settings(device), "attention": base.attention},
        }
    )


# -- the recipe --------------------------------------------------------------------------------------------------


def _recipe(loaded: LoadedRecipe, folder: Path, values: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    flat = flat_recipe(loaded.recipe)
    found = {}
    for key, value in flat.items():
        origin = _origin(loaded.origin(key), folder)
        if key in NOT_INPUTS:
            continue
        # a value that the user wrote as `auto` keeps that in its origin; what it became is what is pinned
        if key in values and value == "auto":
            value, origin = values[key], f"auto ({origin})"
        found[key] = (_with_relative_paths(value, folder), origin)
    # of a section that the recipe does not have
    left_out = {key: (value, "auto (default)") for key, value in values.items() if key not in flat}
    return found | left_out


def _origin(text: str, folder: Path) -> str:
    """`file:line:column` with the file relative to the lock and without the column; other origins as they are."""
    path, *numbers = text.rsplit(":", 2)
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        return text
    return f"{relative(path, folder)}:{numbers[0]}"


def _with_relative_paths(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_with_relative_paths(item, folder) for item in value]
    if isinstance(value, dict):
        return {key: _with_relative_paths(item, folder) for key, item in value.items()}
    return relative(value, folder) if isinstance(value, str) and os.path.isabs(value) else value


# -- base and data -----------------------------------------------------------------------------------------------


def _base(prepared: Prepared, folder: Path) -> BaseLock:
    name = prepared.loaded.recipe.model.base
    # whoever locks or checks a lock has not loaded them yet: what is not here would be missing from the lock
    fetch_weights(prepared.source)
    found = snapshot(prepared.source)
    return BaseLock(
        name=relative(name, folder) if os.path.isabs(name) else name,
        commit=found.commit,
        files={file: files.sha256_file(path) for file, path in found.files.items()},
    )


def _init_adapter(prepared: Prepared, folder: Path) -> AdapterLock | None:
    start = prepared.start
    if start is None:
        return None
    name = start.source.name
    return AdapterLock(
        name=relative(name, folder) if os.path.isabs(name) else name, commit=start.source.commit, files=start.hashes
    )


def _data(prepared: Prepared, folder: Path) -> DataLock:
    facts = prepared.data.facts
    splits = {"train": facts.train} | ({} if facts.validation is None else {"validation": facts.validation})
    # files that ship with the package lie in another place on each machine
    builtin = {str(builtin_data(name)): f"builtin:{name}" for name in data_names()}
    return DataLock(
        sources=[
            SourceLock(
                split=split,
                name=relative(source.name, folder) if os.path.isabs(source.name) else source.name,
                format=source.format,
                files={builtin.get(file.path) or _file_name(file.path, folder): file.sha256 for file in source.files},
            )
            for split, found in splits.items()
            for source in found.sources
        ],
        train=_split(facts.train),
        validation=None if facts.validation is None else _split(facts.validation),
    )


def _file_name(path: str, folder: Path) -> str:
    return relative(path, folder) if os.path.isabs(path) else path


def _split(facts: SplitFacts) -> SplitLock:
    return SplitLock(rows=facts.rows, order_sha256=facts.order_sha256, stream_sha256=facts.stream_sha256)


# -- the arithmetic ----------------------------------------------------------------------------------------------


def _settings(device: str) -> dict[str, Any]:
    found: dict[str, Any] = determinism(device)
    # set elsewhere in the process, for instance by a user's own script, and it changes every product of matrices
    found["matmul_precision"] = torch.get_float32_matmul_precision()
    if device == "cuda":
        found["cudnn_benchmark"] = torch.backends.cudnn.benchmark
        found["cudnn_tf32"] = torch.backends.cudnn.allow_tf32
    return found
