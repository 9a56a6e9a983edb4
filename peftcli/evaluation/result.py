"""What an evaluation found, and how two of them compare. Keys are `eval_<name>` everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from peftcli.errors import DataError
from peftcli.evaluation.bootstrap import Interval, interval, resample
from peftcli.evaluation.metric import Better, Metric

Verdict = Literal["better", "worse", "unclear"]


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
        return float(self.metric.value(self.numbers.sum(axis=0)))

    def resampled(self) -> np.ndarray:
        """The metric on resampled rows; the same rows for every table of this length."""
        return resample(self.numbers, self.metric.value)

    def of_source(self, source: int) -> Table:
        chosen = self.sources == source
        return Table(self.metric, self.numbers[chosen], self.sources[chosen])


@dataclass(frozen=True)
class Sample:
    """What the model wrote where the row holds `reference`."""

    prompt: str
    reference: str
    prediction: str
    origin: str
    """`file:line` of the row."""


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on some rows."""

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    """95 %, by the bootstrap over rows."""
    rows: int
    trained_tokens: int
    """Targets that were scored."""
    samples: list[Sample]
    sources: dict[int, dict[str, float]]
    """The metrics of each source alone, by its number in the recipe; empty where all rows are of one source."""
    source_rows: dict[int, int]
    """Rows of each source."""
    seconds: float
    tables: dict[str, Table] = field(repr=False, default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """Tuned minus base, on the same rows."""

    delta: float
    lo: float
    hi: float
    """95 % interval of the difference, rows drawn in pairs."""
    disjoint: bool
    """Whether the two models' own intervals do not touch: a stronger claim than an interval without 0."""
    better: Better

    @property
    def verdict(self) -> Verdict:
        """How the tuned model stands, as far as these rows can tell: `unclear` where the interval holds 0."""
        if not self.lo > 0 and not self.hi < 0:
            return "unclear"
        return "better" if (self.hi < 0) == (self.better == "lower") else "worse"


def values(tables: Mapping[str, Table]) -> dict[str, float]:
    """The value of each metric on all rows."""
    return {name: table.value() for name, table in tables.items()}


def intervals(tables: Mapping[str, Table]) -> dict[str, Interval]:
    return {name: interval(table.resampled()) for name, table in tables.items()}


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


def compare(base: Evaluation, tuned: Evaluation) -> dict[str, Difference]:
    """The difference of each metric that both have, with a paired bootstrap interval.

    Raises `DataError` when the two were not scored on the same number of rows.
    """
    common = [name for name in base.tables if name in tuned.tables]
    for name in common:
        if len(base.tables[name].numbers) != len(tuned.tables[name].numbers):
            raise DataError(
                f"{name} cannot be compared: base and tuned model were scored on different rows",
                fix="evaluate both on the same data with the same `evaluation.rows`",
            )
    return {name: _difference(base.tables[name], tuned.tables[name]) for name in common}


def _difference(base: Table, tuned: Table) -> Difference:
    base_values, tuned_values = base.resampled(), tuned.resampled()
    lo, hi = interval(tuned_values - base_values)
    (base_lo, base_hi), (tuned_lo, tuned_hi) = interval(base_values), interval(tuned_values)
    return Difference(
        delta=tuned.value() - base.value(),
        lo=lo,
        hi=hi,
        disjoint=tuned_hi < base_lo or base_hi < tuned_lo,
        better=base.metric.better,
    )
