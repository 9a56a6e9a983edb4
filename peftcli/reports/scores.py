"""One metric of base and tuned model side by side, and what their difference means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peftcli.reports.metric_facts import MetricFacts
from peftcli.reports.numbers import is_missing, metric_value, percent, signed
from peftcli.reports.record import DifferenceRecord, EvaluationRecord, Interval, RunRecord

LOSS = "eval_loss"
"""The metric that every run has."""
LEAKED_SHARE = 0.5
"""Of the scored rows: from here on a result is called leaked, below it gets a note."""
_CLEAR_CHANGE = 0.01  # where no difference was tested: the relative change that counts as one

Relation = Literal["better", "worse", "unclear", "unmeasured"]


def metric_label(metric: str) -> str:
    """`eval_exact_match` -> `exact match`."""
    return metric.removeprefix("eval_").replace("_", " ")


@dataclass(frozen=True)
class Score:
    """A metric of both models; intervals are 95 %, None where not measured.

    `facts`: what the metric says of itself, None in records that do not carry it. `difference`: the paired comparison.
    """

    metric: str
    base: float | None
    tuned: float | None
    facts: MetricFacts | None = None
    base_interval: Interval | None = None
    tuned_interval: Interval | None = None
    difference: DifferenceRecord | None = None

    @property
    def lower_is_better(self) -> bool:
        """Whether the metric says so; False where it says nothing."""
        return self.facts is not None and self.facts.better == "lower"

    @property
    def fraction(self) -> bool:
        """Whether values are shares of one."""
        return self.facts is not None and self.facts.fraction

    @property
    def direction(self) -> str:
        """`lower is better`, `higher is better`, or nothing where nobody said."""
        return "" if self.facts is None else f"{self.facts.better} is better"

    @property
    def measured(self) -> bool:
        """Whether both models have a number."""
        return not is_missing(self.base) and not is_missing(self.tuned)

    @property
    def relation(self) -> Relation:
        """How the tuned model stands to the base: by the paired test, without one by a change of 1 %."""
        if not self.measured or self.facts is None:
            return "unmeasured"
        if self.difference is not None:
            return self.difference.verdict
        base, tuned = self.base or 0.0, self.tuned or 0.0
        # relative to the larger of the two, so that the direction makes no difference
        if abs(tuned - base) <= _CLEAR_CHANGE * max(abs(base), abs(tuned)):
            return "unclear"
        # `tuned < base` is an improvement exactly where lower is better
        return "better" if (tuned < base) == self.lower_is_better else "worse"

    @property
    def change(self) -> str:
        """The difference in words: points for shares, percent of the base for all else."""
        if self.base is None or self.tuned is None or not self.measured:
            return self.shown(None)
        difference = self.tuned - self.base
        if self.fraction:
            return signed(f"{abs(difference) * 100:.1f} points", difference)
        # nothing can be said in percent of zero
        if self.base == 0:
            return signed(self.shown(abs(difference)), difference)
        return signed(percent(abs(difference / self.base)), difference)

    def shown(self, value: float | None) -> str:
        """A value of this metric as people read it."""
        return metric_value(self.facts, value)

    def value(self, which: Literal["base", "tuned"]) -> str:
        """The metric of one of the models, as people read it."""
        return self.shown(self.base if which == "base" else self.tuned)


def scores(record: RunRecord) -> list[Score]:
    """All metrics of a record, see `scores_of`."""
    return scores_of(record.evaluation)


def scores_of(evaluation: EvaluationRecord) -> list[Score]:
    """All metrics of an evaluation: the loss, the headline, then in the record's order."""
    names = list(dict.fromkeys([*evaluation.tuned, *evaluation.base]))
    # False sorts before True
    names.sort(key=lambda name: (name != LOSS, name != evaluation.headline))
    return [score_of(evaluation, name) for name in names]


def headline_scores(record: RunRecord) -> list[Score]:
    """What a verdict names: the loss, and the recipe's first metric beyond it, those of them that were measured."""
    wanted = (LOSS, record.evaluation.headline)
    return [score for score in scores(record) if score.metric in wanted and not is_missing(score.tuned)]


def is_leaked(record: RunRecord) -> bool:
    """Whether so many scored rows were trained on that the figures say nothing about new ones."""
    rows = record.evaluation.rows or 0
    return rows > 0 and record.evaluation.leaked_rows >= LEAKED_SHARE * rows


def score_of(evaluation: EvaluationRecord, name: str) -> Score:
    """One metric of an evaluation, whether it was measured or not."""
    return Score(
        name,
        evaluation.base.get(name),
        evaluation.tuned.get(name),
        evaluation.facts.get(name),
        evaluation.intervals.base.get(name),
        evaluation.intervals.tuned.get(name),
        evaluation.differences.get(name),
    )
