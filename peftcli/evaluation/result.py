"""What an evaluation found, and how two of them compare. Keys are `eval_<name>` everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from peftcli.errors import DataError
from peftcli.evaluation.bootstrap import Interval, interval, resample, resample_rows
from peftcli.evaluation.metric import AnswerPair, Metric
from peftcli.evaluation.rates import is_binary, mcnemar, paired_interval, wilson
from peftcli.reports.metric_facts import Better, MetricFacts
from peftcli.tasks.labels.labelled import Labelled

Verdict = Literal["better", "worse", "unclear"]
"""What a comparison in pairs says of the tuned model against the base."""
SIGNIFICANT = 0.05
"""Of McNemar's p, as of the 95 % intervals."""


@dataclass(frozen=True)
class Table:
    """A metric's additive numbers, one line a row, so that any choice of rows can be scored again."""

    metric: Metric
    numbers: np.ndarray
    """(rows, k)"""
    sources: np.ndarray
    """(rows,), the number of each row's source in the recipe."""

    def value(self) -> float:
        """The metric on all rows."""
        return self.metric.of_all(self.numbers)

    def resampled(self) -> np.ndarray:
        """The metric on resampled rows; the same rows for every table of this length."""
        if not self.metric.additive:
            return resample_rows(self.numbers, self.metric.of_all)
        return resample(self.numbers, self.metric.value)

    def interval(self) -> Interval:
        """95 %: Wilson's for a share of rows, else the bootstrap's.

        A share of tokens that is the same on every resample (all right, all wrong) is no certainty either: then rows
        stand for its tokens, which cannot claim too much.
        """
        share = self.value()
        if is_binary(self.numbers):
            return wilson(share, len(self.numbers))
        low, high = interval(self.resampled())
        if self.metric.fraction and low == high and share in (0.0, 1.0):
            return wilson(share, len(self.numbers))
        return low, high

    def of_source(self, source: int) -> Table:
        """Of the rows of one source alone."""
        return self.take(self.sources == source)

    def take(self, rows: np.ndarray) -> Table:
        """Of these rows alone: their numbers, or (rows,) truth values."""
        return Table(self.metric, self.numbers[rows], self.sources[rows])


@dataclass(frozen=True)
class AnswerSample:
    """What the model wrote where the row holds `reference`."""

    prompt: str
    reference: str
    prediction: str
    origin: str
    """`file:line` of the row."""
    judged: AnswerPair
    """What metrics compare: both without thoughts."""
    cut: bool = False
    """Whether the answer was ended by its length and not by itself."""


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on some rows."""

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    """95 %, by Wilson for shares of rows, by the bootstrap over rows for all else."""
    rows: int
    trained_tokens: int
    """Targets that were scored."""
    samples: list[AnswerSample]
    sources: dict[int, dict[str, float]]
    """The metrics of each source alone, by its number in the recipe; empty where all rows are of one source."""
    source_rows: dict[int, int]
    """Rows of each source."""
    seconds: float
    answered: int = 0
    """Rows that an answer was written to."""
    cut: int = 0
    """Answers among these that their length ended."""
    budget: int | None = None
    """New tokens that an answer could have; None where nothing was written."""
    unanswered: str | None = None
    """Why there are no samples, where the model cannot write text."""
    tables: dict[str, Table] = field(repr=False, default_factory=dict)
    labelled: Labelled | None = field(repr=False, default=None)
    """What the model says of each labelled row or word; None for a task without labels."""


@dataclass(frozen=True)
class Difference:
    """Tuned minus base, on the same rows."""

    delta: float
    lo: float
    hi: float
    """95 % interval of the difference, rows in pairs."""
    better: Better
    test: str
    """How the two were compared, as a report says it."""
    p: float | None = None
    """Two-sided; None where an interval is all that was computed."""

    @property
    def verdict(self) -> Verdict:
        """How the tuned model stands, as far as these rows can tell."""
        unclear = self.p >= SIGNIFICANT if self.p is not None else not self.lo > 0 and not self.hi < 0
        if unclear or self.delta == 0:
            return "unclear"
        return "better" if (self.delta < 0) == (self.better == "lower") else "worse"


def values(tables: Mapping[str, Table]) -> dict[str, float]:
    """The value of each metric on all rows."""
    return {name: table.value() for name, table in tables.items()}


def intervals(tables: Mapping[str, Table]) -> dict[str, Interval]:
    """The 95 % interval of each metric; none where an end is no number (a perplexity beyond floats)."""
    found = {name: table.interval() for name, table in tables.items()}
    return {name: ends for name, ends in found.items() if np.isfinite(ends).all()}


def values_by_source(tables: Mapping[str, Table]) -> dict[int, dict[str, float]]:
    """The value of each metric on the rows of each source, empty where there is one source only."""
    found = sorted({int(source) for table in tables.values() for source in np.unique(table.sources)})
    if len(found) < 2:
        return {}
    parts = {source: {name: table.of_source(source) for name, table in tables.items()} for source in found}
    return {
        source: {name: part.value() for name, part in tables_of_source.items() if len(part.numbers)}
        for source, tables_of_source in parts.items()
    }


def facts_of(evaluation: Evaluation) -> dict[str, MetricFacts]:
    """What each measured metric says of itself."""
    return {name: table.metric.facts for name, table in evaluation.tables.items()}


def compare(base: Evaluation, tuned: Evaluation) -> dict[str, Difference]:
    """The difference of each metric that both have: McNemar's test for shares of rows, else a paired bootstrap.

    Raises `DataError` when the two were not scored on the same number of rows.
    """
    common = [name for name in base.tables if name in tuned.tables]
    for name in common:
        if len(base.tables[name].numbers) != len(tuned.tables[name].numbers):
            raise DataError(
                f"{name} cannot be compared: base and tuned model were scored on different rows",
                fix="evaluate both on the same data with the same `evaluation.rows`",
            )
    found = {name: difference(base.tables[name], tuned.tables[name]) for name in common}
    return {name: each for name, each in found.items() if np.isfinite([each.delta, each.lo, each.hi]).all()}


def difference(base: Table, tuned: Table) -> Difference:
    """`tuned` minus `base` in one metric on the same rows."""
    if is_binary(base.numbers) and is_binary(tuned.numbers):
        return _of_rows(base, tuned)
    lo, hi = interval(tuned.resampled() - base.resampled())
    return Difference(tuned.value() - base.value(), lo, hi, base.metric.better, test="paired bootstrap over rows")


def _of_rows(base: Table, tuned: Table) -> Difference:
    change = tuned.numbers[:, 0] - base.numbers[:, 0]
    won, lost = int((change > 0).sum()), int((change < 0).sum())
    lo, hi = paired_interval(won, lost, len(change))
    delta = tuned.value() - base.value()
    p = mcnemar(won, lost)
    # the measured difference is rounded otherwise than the ends
    return Difference(delta, min(lo, delta), max(hi, delta), base.metric.better, test="McNemar's exact test", p=p)
