"""`--tune`: the learning rate of a member, and what its method declares as tunable, by successive halving."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from peftcli.compare.halving import best_of, rate_grid, rungs
from peftcli.compare.members import Member
from peftcli.compare.trials import BringAll, Setting, lighten, score_of, trial_of
from peftcli.recipe import Recipe


@dataclass(frozen=True)
class Trial:
    """A setting under so many steps. `score`: loss on the tuning rows; None where it failed."""

    setting: Setting
    steps: int
    seconds: float
    score: float | None


@dataclass(frozen=True)
class Tuned:
    """What tuning found for all members of a name. `chosen`: None where no trial came to its end."""

    name: str
    auto: float
    whole: int
    """Steps of a member."""
    trials: tuple[Trial, ...]
    chosen: Setting | None

    @property
    def steps(self) -> int:
        """Of all trials."""
        return sum(trial.steps for trial in self.trials)

    @property
    def edge(self) -> str | None:
        """Where the chosen rate is the lowest or highest that was tried, so that a better one may lie beyond."""
        rates = [trial.setting.rate for trial in self.trials]
        if self.chosen is None or len(set(rates)) < 2 or min(rates) < self.chosen.rate < max(rates):
            return None
        return "lowest" if self.chosen.rate == min(rates) else "highest"

    def sentence(self) -> str:
        """What was chosen, and what that cost."""
        cost = f"{len(self.trials)} trials, as many steps as {self.steps / self.whole:.2g} members"
        if self.chosen is None:
            return f"{self.name}: no trial came to its end ({cost})"
        beyond = f", the {self.edge} that was tried: a better one may lie beyond" if self.edge else ""
        return f"{self.name}: {self.chosen.title} (auto: {self.auto:.3g}) by {cost}{beyond}"

    def to_dict(self) -> dict[str, Any]:
        """As `compare.json` has it."""
        trials = [
            {"learning_rate": trial.setting.rate, **dict(trial.setting.fields), "steps": trial.steps,
             "seconds": trial.seconds, "loss": trial.score}
            for trial in self.trials
        ]  # fmt: skip
        chosen = None if self.chosen is None else {"learning_rate": self.chosen.rate, **dict(self.chosen.fields)}
        seconds = sum(trial.seconds for trial in self.trials)
        return {"auto": self.auto, "chosen": chosen, "steps": self.steps, "seconds": seconds, "trials": trials}


def tune(
    member: Member, recipe: Recipe, *, auto: float, whole: int, candidates: int, rows: np.ndarray, bring: BringAll
) -> Tuned:
    """The setting of the lowest loss on `rows` among `candidates` rates around `auto`, then among its method's tunables.

    `member`: the first of its name. `whole`: its steps. What came to its end in an earlier session is not trained again.
    """
    trials: list[Trial] = []

    def scores(settings: Sequence[Setting], steps: int) -> list[float | None]:
        ended = bring([trial_of(member, each, steps, recipe.training, whole) for each in settings])
        lighten(ended)
        found = [score_of(each, rows) for each in ended]
        seconds = [each.record.seconds.training if each.record is not None else 0.0 for each in ended]
        trials.extend(Trial(*each) for each in zip(settings, [steps] * len(found), seconds, found, strict=True))
        return found

    alive = [Setting(rate) for rate in rate_grid(auto, candidates)]
    planned = rungs(candidates, whole)
    best, best_score = None, None
    for number, rung in enumerate(planned):
        found = dict(enumerate(scores(alive, rung.steps)))
        keep = planned[number + 1].candidates if number + 1 < len(planned) else 1
        alive = [alive[each] for each in best_of(found, keep)]
        # of the last rung alone in the end: a loss after fewer steps says nothing beside it
        best_score = min((score for score in found.values() if score is not None), default=None)
    best = alive[0] if alive else None
    if best is not None and best_score is not None:
        # as many steps as the last rung had: only then is its score the one to beat
        best = _with_fields(best, best_score, recipe.method.tunable(), lambda each: scores(each, planned[-1].steps))
    return Tuned(member.name, auto, whole, tuple(trials), best)


def _with_fields(
    best: Setting,
    score: float,
    tunable: Mapping[str, Sequence[Any]],
    scores: Callable[[Sequence[Setting]], list[float | None]],
) -> Setting:
    """One field after the other, at the rate that was found: values that make the trial better stay."""
    for name, values in tunable.items():
        tried = [Setting(best.rate, (*best.fields, (name, value))) for value in values]
        for setting, found in zip(tried, scores(tried), strict=True):
            if found is not None and found < score:
                best, score = setting, found
    return best
