"""Which processes train a run: those of an outside launcher, those that are started here, or this one alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from peftcli.errors import RecipeError, StorageError
from peftcli.launching.workers import run_in_workers
from peftcli.recipe import LoadedRecipe, load_recipe
from peftcli.reports.record import RunRecord
from peftcli.runs.following import end_following, follow
from peftcli.runs.lengthening import CHANGEABLE
from peftcli.runs.locating import read_record
from peftcli.training.group import current_world, telling_failures
from peftcli.training.world import World

Overrides = Sequence[str] | Mapping[str, object]
KEY = "training.processes"
_RESUMABLE = (KEY, "training.sharding", "threads")


@contextlib.contextmanager
def run_processes() -> Iterator[World]:
    """The processes of the run inside; what ends this one there is told to the others."""
    world = current_world()
    with telling_failures(world):
        yield world


def load_for(world: World, path: Path, overrides: Overrides) -> tuple[LoadedRecipe, Overrides]:
    """A recipe as the processes that are there train it, and the overrides that make it so.

    Raises `RecipeError` where the recipe asks for another number of processes than its launcher has started.
    """
    loaded = load_recipe(path, overrides)
    wanted = loaded.recipe.training.processes
    # alone, the recipe says how many are still to be started
    if world.size == 1 or wanted == world.size:
        return loaded, overrides
    # 1 is the default: then the launcher's number counts
    if wanted != 1:
        raise RecipeError(
            f"{KEY} is {wanted}, and the launcher has started {world.size}",
            where=loaded.origin(KEY),
            fix=f"start {wanted}, or leave the key out: under a launcher its number counts",
        )
    counted: Overrides = (
        {**overrides, KEY: world.size} if isinstance(overrides, Mapping) else [*overrides, f"{KEY}={world.size}"]
    )
    return load_recipe(path, counted), counted


def require_resumable(overrides: Sequence[str], world: World) -> list[str]:
    """Overrides that a run may go on under: `RecipeError` for those that are not about processes. Under a launcher its
    number of processes counts, whatever the run was begun with."""
    others = [text for text in overrides if text.partition("=")[0].strip() not in _RESUMABLE]
    if others:
        raise RecipeError(
            f"a run cannot go on under another {others[0].partition('=')[0].strip()}",
            where=f"--set {others[0]}",
            fix=f"with `peft resume` only these can be set: {', '.join((*_RESUMABLE, *CHANGEABLE))}",
        )
    return [*overrides, f"{KEY}={world.size}"] if world.size > 1 else list(overrides)


def starts_workers(world: World, loaded: LoadedRecipe) -> bool:
    """Whether a run needs more processes than this one, and nobody has started them yet."""
    return world.size == 1 and loaded.recipe.training.processes > 1


def in_workers(command: str, target: Path, folder: Path, options: Sequence[str], processes: int) -> RunRecord:
    """The record of a run that a command of ours makes, or goes on with, in several processes."""
    run_in_workers([command, str(target), *options, "--json"], processes)
    return _record(folder)


def as_options(overrides: Overrides) -> list[str]:
    """Overrides as they are typed."""
    texts = (
        [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
        if isinstance(overrides, Mapping)
        else list(overrides)
    )
    return [part for text in texts for part in ("--set", text)]


def followed(world: World) -> tuple[RunRecord, Path]:
    """Takes part in what the leading process runs; returns its record."""
    folder = follow(world)
    return _record(folder), folder


def ended(world: World, record: RunRecord, folder: Path) -> tuple[RunRecord, Path]:
    """The outcome of the leading process; the others are let go."""
    end_following(world, folder)
    return record, folder


def _record(folder: Path) -> RunRecord:
    found = read_record(folder)
    if not found:
        raise StorageError("the run's record cannot be read", where=str(folder), fix="the disk must be shared")
    return RunRecord.model_validate(found)
