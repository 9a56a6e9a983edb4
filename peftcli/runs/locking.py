"""Locks in whole jobs: written by a run, by `peft lock`, and held against what `--locked` finds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftcli.adapters.sources import KEY as INIT_ADAPTER
from peftcli.adapters.sources import split_revision
from peftcli.errors import CheckFailed, CheckpointError, DeviceError, RecipeError
from peftcli.lock.bands import Measured, bands
from peftcli.lock.differences import difference_error, environment_differences, input_differences
from peftcli.lock.document import LOCK_NAME, Expected, Lock, RunTrace
from peftcli.lock.inputs import LoadedBase, input_lock, with_loaded
from peftcli.lock.lock_file import lock_path, read_lock, require_own_lock, write_lock
from peftcli.lock.places import absolute, moved, relative, without_places
from peftcli.models.fingerprint import Fingerprint
from peftcli.planning.machine import resolve_device
from peftcli.planning.plan import Prepared, prepare_run
from peftcli.recipe import LoadedRecipe, flat_recipe, load_recipe
from peftcli.reports.seal import changed_beside
from peftcli.runs.assembly import Assembly
from peftcli.runs.folder import resolved_values
from peftcli.runs.locating import read_record, recorded_run
from peftcli.runs.own_files import RECIPE_NAME
from peftcli.streams import tell

Overrides = Sequence[str] | Mapping[str, object]
"""`--set` as given (`key=value`), or dotted key -> value."""
PINNED = ("device", "threads", "model.dtype", "training.precision", "training.micro_batch_size", "training.kernels")
"""Keys whose `auto` depends on machine or version: under a lock they are what it says."""


def inputs_of(prepared: Prepared, folder: Path, assembly: Assembly | None = None) -> Lock:
    """The lock of a run's inputs; with the assembly also of the weights as loaded."""
    values = resolved_values(prepared.plan.resolved) | prepared.task.settled_options
    lock = input_lock(prepared, folder, values)
    return lock if assembly is None else with_weights(lock, assembly)


def with_weights(lock: Lock, assembly: Assembly) -> Lock:
    """A lock of inputs with the weights as they were loaded."""
    attention = str(getattr(assembly.model.config, "_attn_implementation", ""))
    base = LoadedBase(assembly.base_fingerprint, attention)
    return with_loaded(lock, base, assembly.prepared.plan.resolved.device)


def with_results(lock: Lock, runs: Sequence[RunTrace], base: Sequence[Measured], tuned: Sequence[Measured]) -> Lock:
    """A lock of inputs with the results that they led to."""
    if len(runs) > 1:
        runs = [run.model_copy(update={"tuned": found.finite()}) for run, found in zip(runs, tuned, strict=True)]
    expected = Expected(runs=list(runs), base=bands(base), tuned=bands(tuned))
    return lock.model_copy(update={"expected": expected, "seeds": [run.seed for run in runs]})


def as_first_written(lock: Lock, folder: Path) -> Lock:
    """The lock of a run that goes on: its recipe is known from where it was written, not from the run's own copy."""
    path = folder / LOCK_NAME
    if not path.is_file():
        return lock
    try:
        before = read_lock(path)
    except CheckpointError as error:
        # what it pins is pinned again by the run that goes on; only where its recipe came from is lost
        tell(f"warning: {LOCK_NAME} is damaged ({error}); it is written again")
        return lock
    recipe = {
        key: before.recipe[key]
        if key in before.recipe and without_places(before.value(key)) == without_places(value)
        else (value, origin)
        for key, (value, origin) in lock.recipe.items()
    }
    return lock.model_copy(update={"source": before.source, "recipe": recipe})


# -- what a lock asks for ----------------------------------------------------------------------------------------


def pinned_recipe(path: Path, overrides: Overrides, lock: Lock) -> LoadedRecipe:
    """A recipe whose `auto` values that depend on the machine are those of the lock, where this machine can.

    A branch of a Hub base is the commit that it was when the lock was made.
    """
    loaded = load_recipe(path, overrides)
    flat = flat_recipe(loaded.recipe)
    pins = {key: value for key in PINNED if flat[key] == "auto" and (value := lock.value(key)) not in (None, "auto")}
    # on another device the other pins would be wrong: a precision or micro batch was chosen for the device
    if not _is_here(pins.get("device")):
        pins = {key: value for key, value in pins.items() if key == "threads"}
    # only while the recipe still names what was locked; another base or revision is the user's wish
    if lock.base.commit is not None and all(flat[key] == lock.value(key) for key in ("model.base", "model.revision")):
        pins["model.revision"] = lock.base.commit
    start = lock.init_adapter
    if start is not None and start.commit is not None and flat[INIT_ADAPTER] == lock.value(INIT_ADAPTER):
        pins[INIT_ADAPTER] = f"{split_revision(start.name)[0]}@{start.commit}"
    if not pins:
        return loaded
    merged = {**overrides, **pins} if isinstance(overrides, Mapping) else [*overrides, *_assignments(pins)]
    pinned = load_recipe(path, merged)
    origins = {**pinned.origins, **{key: f"auto ({loaded.origin(key)})" for key in pins}}
    return dataclasses.replace(pinned, origins=origins)


def _assignments(pins: Mapping[str, Any]) -> list[str]:
    # quoted: a commit may look like a number
    return [f"{key}={json.dumps(value)}" for key, value in pins.items()]


def _is_here(device: Any) -> bool:
    try:
        return device is None or resolve_device(str(device)) == device
    except DeviceError:
        return False


def locked_run(path: Path, overrides: Overrides, warn: Callable[[str], None]) -> Prepared:
    """What `train --locked` may start: the recipe under its lock, when no input differs.

    Raises `CheckFailed` naming every input that does. A different environment goes to `warn`.
    """
    locked_path = lock_path(path)
    if not locked_path.is_file():
        raise CheckFailed("there is no lock beside the recipe", where=str(locked_path), fix=f"peft lock {path}")
    lock = read_lock(locked_path)
    prepared = prepare_run(pinned_recipe(path, overrides, lock))
    found = inputs_of(prepared, locked_path.absolute().parent)
    differences = input_differences(lock, found, locked_path.absolute().parent)
    if differences:
        headline = f"{path} is not as {locked_path.name} has it"
        raise difference_error(headline, differences, f"put it back, or accept it: peft lock {path}")
    for difference in environment_differences(lock, found):
        warn(f"warning: the environment differs from the lock's: {difference.text}")
    return prepared


def require_locked_weights(lock: Lock, assembly: Assembly) -> None:
    """Raises `CheckFailed` where the weights as loaded are not the lock's, whatever their files were when hashed."""
    if lock.base.fingerprint is None:
        return
    difference = Fingerprint.from_dict(lock.base.fingerprint).difference(assembly.base_fingerprint)
    if difference is not None:
        raise CheckFailed(
            f"the base as loaded is not the one that the lock has: {difference}",
            where=assembly.prepared.source.location,
            fix="put it back, or lock the recipe again",
        )


# -- peft lock ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class WrittenLock:
    """What `peft lock` wrote."""

    path: Path
    lock: Lock
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "written": str(self.path),
            "expected": self.lock.expected is not None,
            "seeds": self.lock.seeds,
            "notes": list(self.notes),
        }


def write_lock_for(path: str | Path, overrides: Overrides = ()) -> WrittenLock:
    """Writes the lock of a run folder with its results, or of a recipe without (or with those that it had, if they hold)."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return _lock_recipe(path, overrides)
    if overrides:
        raise RecipeError("--set has no effect on the lock of a run", fix="leave it out")
    return _lock_run(path)


def _lock_recipe(path: Path, overrides: Overrides) -> WrittenLock:
    target = lock_path(path)
    require_own_lock(target, path)
    lock = inputs_of(prepare_run(load_recipe(path, overrides)), target.absolute().parent)
    notes = ["it holds inputs only; `peft lock RUN` adds the results that a run of it had"]
    if target.is_file():
        before = read_lock(target)
        if before.expected is not None and not input_differences(before, lock, target.absolute().parent):
            # the environment is that in which the results were made, the origins are those of the recipe as it is now
            lock = before.model_copy(update={"recipe": lock.recipe, "environment": before.environment})
            notes = ["nothing has changed: the expected results are kept"]
        elif before.expected is not None:
            notes.append("inputs have changed: the earlier expected results are dropped")
    write_lock(target, lock)
    return WrittenLock(target, lock, tuple(notes))


def _lock_run(run: Path) -> WrittenLock:
    here = run / LOCK_NAME
    if not here.is_file():
        recorded_run(run)
        raise CheckpointError("the run has no lock", where=str(run), fix="train again")
    changed = changed_beside(run, read_record(run).get("run_files") or {}, (RECIPE_NAME, LOCK_NAME))
    if changed is not None:
        raise CheckpointError(
            f"{changed} is not what the run wrote: its SHA-256 differs from the one in the run's record",
            where=str(run / changed),
            fix="put the file back, or train again",
        )
    lock = read_lock(here)
    if lock.expected is None:
        raise CheckpointError("the run has not finished", where=str(run), fix=f"peft resume {run}")
    assert lock.source is not None, "a run's lock knows its recipe"
    recipe = absolute(lock.source, here.absolute().parent)
    if not recipe.is_file():
        raise RecipeError(
            f"the recipe of this run is gone: {recipe}", where=str(here), fix=f"copy {here} beside it as NAME.lock"
        )
    target = lock_path(recipe)
    require_own_lock(target, recipe)
    found = relocated(lock, here.absolute().parent, target.parent)
    _require_same_recipe(recipe, run, found)
    write_lock(target, found)
    return WrittenLock(target, found)


def relocated(lock: Lock, old: Path, new: Path) -> Lock:
    """A lock in `old` as it reads in `new`."""
    return lock.model_copy(
        update={
            "source": moved(lock.source, old, new),
            "recipe": {
                key: (moved(value, old, new), _moved_origin(origin, old, new))
                for key, (value, origin) in lock.recipe.items()
            },
            "base": lock.base.model_copy(update={"name": moved(lock.base.name, old, new)}),
            "init_adapter": None
            if lock.init_adapter is None
            else lock.init_adapter.model_copy(update={"name": moved(lock.init_adapter.name, old, new)}),
            "data": lock.data.model_copy(
                update={
                    "sources": [
                        source.model_copy(
                            update={
                                "name": moved(source.name, old, new),
                                "files": {str(moved(name, old, new)): sha for name, sha in source.files.items()},
                            }
                        )
                        for source in lock.data.sources
                    ]
                }
            ),
        }
    )


def _moved_origin(origin: str, old: Path, new: Path) -> str:
    bare = origin.removeprefix("auto (").removesuffix(")")
    path, _, line = bare.rpartition(":")
    if not line.isdigit():
        return origin
    return origin.replace(bare, f"{relative(absolute(path, old), new)}:{line}")


def _require_same_recipe(recipe: Path, run: Path, lock: Lock) -> None:
    """A lock beside a recipe is of that recipe: not of one that `--set` changed, nor of one edited since."""
    now = inputs_of(prepare_run(pinned_recipe(recipe, (), lock)), recipe.parent)
    # packages may have been updated since; the results remain those of the run
    differences = [item for item in input_differences(lock, now, recipe.parent) if item.kind != "package"]
    if differences:
        raise difference_error(
            f"{run} is not a run of {recipe} as it is now",
            differences,
            f"write it into {recipe.name}, or train again without --set",
        )


def lock_text(written: WrittenLock) -> str:
    """What `peft lock` prints."""
    lock = written.lock
    counts = f"{len(lock.recipe)} recipe values, {len(lock.base.files)} base files, {len(lock.packages)} packages"
    lines = [f"wrote {written.path}: {counts}"]
    if lock.expected is not None:
        steps = max(run.steps for run in lock.expected.runs)
        lines.append(
            f"expected: {steps} steps of {len(lock.expected.runs)} seed(s), {len(lock.expected.tuned)} metrics"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in written.notes)])
