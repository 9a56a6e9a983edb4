"""Short runs that choose settings for members: no answers, no trackers; afterwards their scores are all that stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from peftcli import files
from peftcli.compare.members import Member
from peftcli.compare.session import Ended
from peftcli.runs.row_scores import read_row_scores
from peftcli.training.config import TrainingConfig

BringAll = Callable[[Sequence[Member]], list[Ended]]
"""Brings members to their end, in the order given."""
METRIC = "eval_loss"
"""What a trial is judged by: every task measures it, and it tells on few rows what a share of right answers cannot."""
_ONLY_TRAINS = (
    "evaluation.metrics=[loss]", "evaluation.samples=0", "evaluation.every=null", "checkpoint.best=null",
    "training.early_stopping=null", "training.epochs=null", "tracking=[]",
)  # fmt: skip
"""A checkpoint chosen by scores would be chosen by rows that the final score uses."""
_HEAVY = ("adapter", "checkpoints")


@dataclass(frozen=True)
class Setting:
    """What is tried: a learning rate, and fields of the method beside it."""

    rate: float
    fields: tuple[tuple[str, float], ...] = ()

    @property
    def title(self) -> str:
        """`rate 0.002, d_initial 0.01`."""
        return ", ".join([f"rate {self.rate:g}", *(f"{name} {value:g}" for name, value in self.fields)])

    @property
    def overrides(self) -> tuple[str, ...]:
        """As for `--set`."""
        fields = (f"method.{name}={value!r}" for name, value in self.fields)
        return (f"training.learning_rate={self.rate!r}", *fields)


def trial_of(member: Member, setting: Setting, steps: int, training: TrainingConfig, whole: int) -> Member:
    """A run of `steps` under a setting, its schedule that of the `whole` run laid over them."""
    title = f"{setting.title.replace(', ', '-').replace(' ', '-')}-steps-{steps}"
    return member.as_trial(title, *setting.overrides, *short_run(steps, training, whole))


def short_run(steps: int, training: TrainingConfig, whole: int) -> tuple[str, ...]:
    """What makes a trial of a run of `whole` steps, as for `--set`."""
    return (*short_schedule(steps, training, whole), *_ONLY_TRAINS)


def short_schedule(steps: int, training: TrainingConfig, whole: int) -> list[str]:
    """What makes a run that much shorter; a warm-up that is given in steps takes the same share as before."""
    found = [f"training.max_steps={steps}"]
    if training.warmup_steps is not None:
        found.append(f"training.warmup_steps={min(steps, round(training.warmup_steps * steps / whole))}")
    return found


def score_of(ended: Ended, rows: np.ndarray) -> float | None:
    """The loss of a trial on these rows; None for one that failed."""
    if ended.record is None:
        return None
    table = read_row_scores(ended.run, "tuned").get(METRIC)
    return table.take(rows).value() if table is not None else None


def lighten(trials: Sequence[Ended]) -> None:
    """Removes what a trial that came to its end is not asked for again: a base trained whole would fill the disk."""
    for trial in trials:
        if trial.record is not None:
            for heavy in (trial.run / name for name in _HEAVY):
                if heavy.exists():
                    files.remove_path(heavy)
