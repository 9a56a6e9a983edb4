"""The processes of a run that do not lead: they train what the leading one says, with it, and write nothing.

The leader meets them with an order before each run: the recipe as it stands and what its plan resolved, so that nothing
depends on what a follower would have made of it. The last order ends them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from peftcli.planning.plan import Prepared, prepare_run
from peftcli.planning.resolved import Resolved
from peftcli.recipe import LoadedRecipe, Recipe
from peftcli.runs.assembly import Assembly, assemble
from peftcli.runs.attaching import attach_method
from peftcli.runs.base_sharding import in_turn, shard_base
from peftcli.runs.fitting import beginning_of, fit_setup
from peftcli.runs.scoring import score_run, updates_of
from peftcli.runs.start_checks import require_fit_base, require_same_start
from peftcli.training.loop import fit
from peftcli.training.signals import RunSignals, StopNow, run_signals
from peftcli.training.world import World

_ORDER = "order"


def lead(world: World, prepared: Prepared, folder: Path, *, resuming: bool, steps: int | None = None) -> None:
    """Tells the other processes to take part in a run from here on, or in its first `steps` alone."""
    if world.size == 1:
        return
    loaded = prepared.loaded
    order = {
        "recipe": loaded.recipe.model_dump(mode="json"),
        "path": str(loaded.path),
        "folder": str(folder),
        "resuming": resuming,
        "steps": steps,
        "resolved": vars(prepared.plan.resolved),
    }
    world.told_by_leader(_ORDER, order)


def end_following(world: World, folder: Path) -> None:
    """Tells the other processes that there is nothing more to do, and where the run lies."""
    world.told_by_leader(_ORDER, {"recipe": None, "folder": str(folder)})


def follow(world: World) -> Path:
    """Takes part in every run that the leading process orders; returns the folder where the last one lies."""
    with run_signals() as signals:
        while True:
            order = _next_order(world, signals)
            if order["recipe"] is None:
                return Path(order["folder"])
            # one that came while the leader prepared the run
            if signals.late is not None:
                raise StopNow(signals.late)
            _take_part(world, order)


def _next_order(world: World, signals: RunSignals) -> dict[str, Any]:
    # the leader may be writing a finished run: that is not left midway
    with signals.finishing():
        order: dict[str, Any] = world.told_by_leader(_ORDER)
        return order


def _take_part(world: World, order: dict[str, Any]) -> None:
    prepared = _prepared(order)
    torch.set_num_threads(prepared.plan.resolved.threads)
    with in_turn(prepared, world):
        assembly = assemble(prepared, Path(order["folder"]), quiet=True, track=False, world=world)
        require_fit_base(assembly)
        attach_method(assembly, resuming=order["resuming"])
        shard_base(assembly)
    require_same_start(assembly)
    setup = fit_setup(assembly, resuming=order["resuming"], has_begun_well=lambda: _move(assembly))
    # reproducing the first steps alone: there is nothing to score
    if order["steps"] is not None:
        fit(beginning_of(setup, order["steps"]))
        return
    result = fit(setup)
    # rows are shared out among the processes: the leader waits for the scores of these
    score_run(assembly, result)
    if world.in_step:
        # the leader measures how far it moved the base, of which each has a part
        updates_of(assembly.model)


def _prepared(order: dict[str, Any]) -> Prepared:
    path = Path(order["path"])
    # what warned the leader need not warn anybody again
    loaded = LoadedRecipe(Recipe.model_validate(order["recipe"]), path, path.parent)
    prepared = prepare_run(loaded)
    resolved = Resolved(**{**order["resolved"], "kernels": tuple(order["resolved"]["kernels"])})
    # what is `auto` depends on the machine, of which there may be several: the leader's counts
    return dataclasses.replace(prepared, plan=dataclasses.replace(prepared.plan, resolved=resolved))


def _move(assembly: Assembly) -> None:
    assembly.move(Path(assembly.world.told_by_leader("folder")))
