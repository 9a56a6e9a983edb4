"""One metric of base and tuned model beside each other, and what their difference means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peftcli.reports.numbers import is_missing, is_rate, metric_value, percent, signed
from peftcli.reports.record import Interval, RunRecord

_LOWER_IS_BETTER = ("loss", "perplexity", "nll", "wer", "cer", "ter", "error", "mae", "mse", "rmse", "bits_per_byte")
_CLEAR_CHANGE = 0.01  # without intervals: the relative change that counts as a change

Relation = Literal["better", "worse", "unclear", "unmeasured"]


def lower_is_better(metric: str) -> bool:
    """Direction of a metric by its name: losses and error rates fall, everything else rises."""
    bare = metric.removeprefix("eval_")
    return any(bare == word or bare.endswith(f"_{word}") for word in _LOWER_IS_BETTER)


def metric_label(metric: str) -> str:
    """`eval_exact_match` -> `exact match`."""
    return metric.removeprefix("eval_").replace("_", " ")


@dataclass(frozen=True)
class Score:
    """A metric of both models; intervals are 95 %, None where not measured."""

    metric: str
    base: float | None
    tuned: float | None
    base_interval: Interval | None = None
    tuned_interval: Interval | None = None

    @property
    def lower_is_better(self) -> bool:
        return lower_is_better(self.metric)

    @property
    def relation(self) -> Relation:
        """How the tuned model stands to the base. With intervals a difference counts when they do not overlap."""
        if self.base is None or self.tuned is None or is_missing(self.base) or is_missing(self.tuned):
            return "unmeasured"
        if self.base_interval and self.tuned_interval:
            if self.base_interval[0] <= self.tuned_interval[1] and self.tuned_interval[0] <= self.base_interval[1]:
                return "unclear"
        elif abs(self.tuned - self.base) <= _CLEAR_CHANGE * max(abs(self.base), abs(self.tuned)):
            return "unclear"
        return "better" if (self.tuned < self.base) == self.lower_is_better else "worse"

    @property
    def change(self) -> str:
        """The difference in words: points for rates, percent of the base for all else."""
        if self.base is None or self.tuned is None or is_missing(self.base) or is_missing(self.tuned):
            return metric_value(self.metric, None)
        difference = self.tuned - self.base
        if is_rate(self.metric):
            return signed(f"{abs(difference) * 100:.1f} points", difference)
        if self.base == 0:
            return signed(metric_value(self.metric, abs(difference)), difference)
        return signed(percent(abs(difference / self.base)), difference)

    def value(self, which: Literal["base", "tuned"]) -> str:
        return metric_value(self.metric, self.base if which == "base" else self.tuned)


def scores(record: RunRecord) -> list[Score]:
    """All metrics of a record, `eval_loss` first, then in the record's order."""
    evaluation = record.evaluation
    names = list(dict.fromkeys([*evaluation.tuned, *evaluation.base]))
    names.sort(key=lambda name: name != "eval_loss")
    return [
        Score(
            name,
            evaluation.base.get(name),
            evaluation.tuned.get(name),
            evaluation.intervals.base.get(name),
            evaluation.intervals.tuned.get(name),
        )
        for name in names
    ]
