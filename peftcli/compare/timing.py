"""`--budget 10min`: how many steps of each member fit into a time, measured once and then fixed.

The schedule of the learning rate needs the number of steps beforehand, and a run must repeat whatever else the machine
does: so a few steps are measured, the number that follows is written down, and every member of a name trains as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftcli.compare.budget import Budget
from peftcli.compare.members import Member
from peftcli.compare.plans import Known, require_schedules
from peftcli.compare.session import Ended
from peftcli.compare.trials import BringAll, lighten, short_run
from peftcli.reports import numbers

MEASURED_STEPS = 10
"""Of which the first few, in which libraries warm up, are not counted (see the run's tokens per second)."""
_TRIAL = f"timing-steps-{MEASURED_STEPS}"


@dataclass(frozen=True)
class Timed:
    """What was measured of the members of one name."""

    name: str
    seconds_per_step: float
    steps: int

    def sentence(self) -> str:
        """The number of steps, and what it follows from."""
        return f"{self.name}: {self.steps:,} steps of {numbers.duration(self.seconds_per_step)}"

    def to_dict(self) -> dict[str, Any]:
        """As `compare.json` has it."""
        return {"seconds_per_step": self.seconds_per_step, "steps": self.steps}


def measure(
    members: Sequence[Member], plans: Mapping[str, Known], budget: Budget, bring: BringAll
) -> tuple[dict[str, Known], list[Timed], list[Ended]]:
    """The plans with the steps that fit into the budget, what was measured, and the runs that failed, whose names train
    no further. `members`: the first of each name.

    Raises `RecipeError` where a schedule does not go with the steps.
    """
    trials = [
        member.as_trial(_TRIAL, *short_run(MEASURED_STEPS, plans[member.name].recipe.training, plans[member.name].steps),
                        "evaluation.rows=1", "checkpoint.every=null")
        for member in members
    ]  # fmt: skip
    ended = bring(trials)
    lighten(ended)
    failed = [each for each in ended if not _speed(each)]
    timed = [_timed(each, plans[each.member.name], budget) for each in ended if _speed(each)]
    found = {each.name: replace(plans[each.name], steps=each.steps) for each in timed}
    require_schedules(found, budget)
    return found, timed, failed


def _speed(ended: Ended) -> float:
    """Tokens per second; 0 where nothing was measured."""
    return (ended.record.tokens_per_second or 0.0) if ended.record is not None else 0.0


def _timed(ended: Ended, known: Known, budget: Budget) -> Timed:
    # by tokens, for the few rows that were measured need not be as long as the rest
    seconds = known.tokens_per_step / _speed(ended)
    return Timed(ended.member.name, seconds, max(1, int(budget.amount / seconds)))
