"""What a comparison knows of its members before any of them trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peftcli.compare.budget import STEP_KEYS, Budget
from peftcli.compare.members import Member
from peftcli.compare.validation_rows import Key, RowParts, origins_of, part_rows
from peftcli.data.facts import DataFacts
from peftcli.errors import Fault, PeftcliError, RecipeError
from peftcli.planning.plan import Prepared, prepare_run
from peftcli.recipe import Recipe, load_recipe
from peftcli.recipe.rules import SCHEDULE_FIX

RATE_KEY = "training.learning_rate"
AUTO_RATE = f"{RATE_KEY}=auto"
"""The method's own rate, as for `--set`."""


@dataclass(frozen=True)
class Known:
    """The plan of the members of one name, as far as it is asked for later."""

    recipe: Recipe
    steps: int
    auto: float
    """Its learning rate; under `--tune` the method's own."""
    tokens_per_step: float
    held_out: bool
    """Whether the validation rows are drawn from the training rows, others under each seed."""
    origins: tuple[str, ...]
    """Of the rows that are scored."""
    rows: str = ""
    """What the rows are known by: the hashes of their tokens."""


def plans_of(
    path: Path, settings: Sequence[str], members: Sequence[Member], last: Sequence[str] = ()
) -> dict[str, Known]:
    """Plans each name's first member, so that what cannot run is known before hours of training. `settings` come before
    those of a member, `last` behind them.

    Raises the first error, with every fault of every member.
    """
    faults: list[Fault] = []
    errors: list[PeftcliError] = []
    found: dict[str, Known] = {}
    for member in (member for member in members if member.seed == members[0].seed):
        try:
            found[member.name] = _known(prepare_run(load_recipe(path, [*settings, *member.overrides, *last])))
        except PeftcliError as error:
            errors.append(error)
            faults += [Fault(f"{member.name}: {fault.message}", fault.where, fault.fix) for fault in error.faults]
    if errors:
        raise type(errors[0])("some members cannot run; nothing was trained", faults=faults)
    _require_different(found)
    return found


def _require_different(plans: Mapping[str, Known]) -> None:
    """Raises `RecipeError` where two names stand for one run, written in two ways."""
    seen: list[tuple[str, Recipe]] = []
    for name, known in plans.items():
        for other, recipe in seen:
            if recipe == known.recipe:
                raise RecipeError(f"{other} and {name} are the same run", fix="name one of them")
        seen.append((name, known.recipe))


def _known(prepared: Prepared) -> Known:
    plan, recipe = prepared.plan, prepared.loaded.recipe
    return Known(
        recipe=recipe,
        steps=plan.resolved.steps,
        auto=plan.resolved.learning_rate,
        tokens_per_step=plan.tokens_per_epoch / plan.resolved.steps_per_epoch,
        held_out=plan.held_out,
        rows=_rows(prepared.data.facts),
        origins=origins_of(prepared.data.validation, recipe.evaluation.rows),
    )


def within(plans: Mapping[str, Known], budget: Budget) -> dict[str, Known]:
    """The plans with the steps of a budget, which differ where a name has other rows. Raises `RecipeError` where a
    schedule does not go with them."""
    found = {name: replace(known, steps=budget.steps(known.tokens_per_step)) for name, known in plans.items()}
    require_schedules(found, budget)
    return found


def require_schedules(plans: Mapping[str, Known], budget: Budget) -> None:
    """Raises `RecipeError` where a schedule does not go with the steps of a budget."""
    faults = [
        Fault(f"{name}, {budget.text}: {fault}", "training.scheduler", SCHEDULE_FIX)
        for name, known in plans.items()
        if (fault := known.recipe.training.schedule_fault(known.steps)) is not None
    ]
    if faults:
        raise RecipeError(f"--budget {budget.text} does not go with the schedule; no member was trained", faults=faults)


def require_one_length(budget: Budget | None, vary: Mapping[str, Sequence[str]]) -> None:
    """Raises `RecipeError` where two things say how long a member trains."""
    for key in STEP_KEYS:
        if budget is not None and key in vary:
            raise RecipeError(f"--vary {key} and --budget both say how long a member trains", fix="give one of them")


def _rows(facts: DataFacts) -> str:
    parts = [facts.train] if facts.validation is None else [facts.train, facts.validation]
    return " ".join(part.stream_sha256 for part in parts)


def parts_of(path: Path, settings: Sequence[str], members: Sequence[Member], plans: Mapping[str, Known]) -> RowParts:
    """Which of the rows each member scores are for tuning. Plans what other seeds hold out.

    Raises `DataError` for too few rows.
    """
    first = members[0]
    origins: dict[Key, Sequence[str]] = {}
    for member in members:
        known = plans[member.name]
        if known.held_out and member.seed != first.seed:
            prepared = prepare_run(load_recipe(path, [*settings, *member.overrides]))
            origins[member.name, member.seed] = origins_of(prepared.data.validation, known.recipe.evaluation.rows)
        else:
            origins[member.name, member.seed] = known.origins
    return part_rows(origins, first.seed, first.seed)


def require_one_choice(vary: Mapping[str, Sequence[str]]) -> None:
    """Raises `RecipeError` where the rate to be tuned is given too."""
    if RATE_KEY in vary:
        raise RecipeError(f"--vary {RATE_KEY} and --tune both choose the rate", fix="give one of them")


def require_tunable(plans: Mapping[str, Known]) -> None:
    """Raises `RecipeError` where there is no rate to tune."""
    for name, known in plans.items():
        optimizer = known.recipe.training.optimizer
        if optimizer.own_rate is not None:
            raise RecipeError(
                f"{name}: optimizer {optimizer.type} finds its own step size, so there is no rate to tune",
                fix="leave --tune out, or take another optimizer",
            )
