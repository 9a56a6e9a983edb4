"""`peft resume RUN --set training.epochs=5`: a run that goes on to another length, with its schedule as asked."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.errors import RecipeError
from peftcli.planning.plan import Prepared, prepare_run
from peftcli.recipe import LoadedRecipe, load_recipe
from peftcli.reports.record import load_record
from peftcli.reports.seal import sealed
from peftcli.runs.folder import write_recipe
from peftcli.runs.locking import Overrides
from peftcli.runs.own_files import RECIPE_NAME, RECORD_NAME
from peftcli.training.checkpoint import CHECKPOINTS, CheckpointStore
from peftcli.training.config import ConstantConfig, LengthenedConfig, TrainingConfig
from peftcli.training.schedules import schedule_of
from peftcli.yaml import parse_value, plain

CHANGEABLE = ("training.epochs", "training.max_steps", "training.lengthened", "evaluation.", "checkpoint.", "tracking")
"""Keys that a run which goes on may take another value of: length, evaluation, logging, checkpoints."""
CHOICE = "training.lengthened"
CHOICES = ("stretch", "constant")


def parted(overrides: Overrides) -> tuple[dict[str, Any], list[str]]:
    """Overrides of the keys that may change, by their keys, and all others as they are typed."""
    texts = overrides if not isinstance(overrides, Mapping) else [f"{k}={json.dumps(v)}" for k, v in overrides.items()]
    changes: dict[str, Any] = {}
    others = []
    for text in [texts] if isinstance(texts, str) else texts:
        key, equals, value = text.partition("=")
        name = key.strip().replace("-", "_")
        if equals and name.startswith(CHANGEABLE):
            changes[name] = _parsed(value)
        else:
            others.append(text)
    return changes, others


def change_run(folder: Path, changes: Mapping[str, Any]) -> None:
    """Writes other values of a few keys into a run's own recipe; nothing is written where they cannot be.

    Raises `RecipeError` for a length that the run is beyond, and for one whose schedule is not said.
    """
    given = dict(changes)
    choice = _choice(given.pop(CHOICE, None))
    before = load_recipe(folder / RECIPE_NAME)
    if before.recipe.seeds > 1:
        raise RecipeError("a run of several seeds keeps its length", where=str(folder), fix="train again, for longer")
    prepared = prepare_run(load_recipe(folder / RECIPE_NAME, given))
    part = _lengthened(folder, before.recipe.training, prepared, choice, given)
    if part is not None:
        prepared = _with_length(prepared, part)
    # only now: whatever was refused above has left the run as it was
    write_recipe(folder, prepared.loaded, prepared.plan.resolved)
    _reopen_record(folder)


def _parsed(text: str) -> Any:
    found = parse_value(text, "--set")
    return text if found.node is None or found.faults else plain(found.node)


def _choice(value: Any) -> str | None:
    if value is None or value in CHOICES:
        return None if value is None else str(value)
    raise RecipeError(f"`--set {CHOICE}={value}`: there is no such schedule", fix=f"{CHOICE}={' or '.join(CHOICES)}")


def _lengthened(
    folder: Path, before: TrainingConfig, prepared: Prepared, choice: str | None, given: Mapping[str, Any]
) -> LengthenedConfig | None:
    """What becomes of the schedule; None where the length stays, or nothing has been trained yet."""
    planned, steps = before.num_steps(prepared.order.steps_per_epoch), prepared.plan.resolved.steps
    taken = _steps_taken(folder)
    if steps == planned or not taken:
        if choice is not None:
            raise RecipeError(f"--set {CHOICE} has no effect: the run keeps its {planned} steps", fix="leave it out")
        return None
    if steps <= taken:
        raise RecipeError(
            f"the run has taken {taken} steps, and is to have {steps}",
            where=str(folder),
            fix="ask for more than it has",
        )
    # before the schedule is asked about, for no answer would help
    _require_not_stopped(folder, planned)
    # a constant rate has no end that could be moved
    if choice is None and not isinstance(before.scheduler, ConstantConfig):
        raise _unsaid(folder, before, prepared, planned, taken, given)
    return LengthenedConfig.model_validate({"after": taken, "planned": planned, "schedule": choice or "stretch"})


def _steps_taken(folder: Path) -> int:
    """Of the newest checkpoint."""
    found = CheckpointStore(folder / CHECKPOINTS, "").candidates()
    return int(found[0].name.rsplit("-", 1)[-1]) if found else 0


def _require_not_stopped(folder: Path, planned: int) -> None:
    """A run whose early stopping ended it would end at the same step again."""
    if not (folder / RECORD_NAME).is_file():
        return
    record = load_record(folder)
    if record.status == "completed" and record.steps < planned:
        raise RecipeError(
            f"the run stopped early, after {record.steps} of {planned} steps: it would stop there again",
            where=str(folder),
            fix="train again without training.early_stopping, or go on from its adapter: model.init_adapter",
        )


def _unsaid(
    folder: Path, before: TrainingConfig, prepared: Prepared, planned: int, taken: int, given: Mapping[str, Any]
) -> RecipeError:
    """The rate would jump: how far, and the two commands that say what is meant."""
    rate, steps = prepared.plan.resolved.learning_rate, prepared.plan.resolved.steps
    last = rate * schedule_of(before, planned)(taken)
    part = LengthenedConfig.model_validate({"after": taken, "planned": planned, "schedule": "stretch"})
    # `taken + 1` is the next step: there the rate would jump
    stretched = rate * schedule_of(_appended(before, part), steps)(taken + 1)
    asked = " ".join(f"--set {shlex.quote(f'{key}={value}')}" for key, value in given.items())
    command = f"peft resume {shlex.quote(str(folder))} {asked} --set {CHOICE}"
    return RecipeError(
        f"the schedule was made for {planned} steps, and ends at a rate of {last:.3g}: say how it goes on to {steps}",
        where=f"{folder / RECIPE_NAME}: training.scheduler",
        fix=f"{command}=stretch (as if planned so: {stretched:.3g} at step {taken + 1}), or\n"
        f"       {command}=constant (stays at {last:.3g})",
    )


def _appended(training: TrainingConfig, part: LengthenedConfig) -> TrainingConfig:
    return training.model_copy(update={"lengthened": [*training.lengths, part]})


def _with_length(prepared: Prepared, part: LengthenedConfig) -> Prepared:
    recipe = prepared.loaded.recipe
    longer = recipe.model_copy(update={"training": _appended(recipe.training, part)})
    loaded: LoadedRecipe = dataclasses.replace(prepared.loaded, recipe=longer)
    return dataclasses.replace(prepared, loaded=loaded)


def _reopen_record(folder: Path) -> None:
    """What a finished run recorded is that of a run on its way, until it has ended again."""
    if not (folder / RECORD_NAME).is_file():
        return
    record = load_record(folder).model_copy(update={"status": "interrupted", "run_files": {}, "digest": None})
    files.write_text(folder / RECORD_NAME, sealed(record.to_json()))
