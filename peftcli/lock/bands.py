"""The band of a metric: how far from its value a result may be and still count as the same."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from peftcli.lock.document import Band
from peftcli.reports.metric_facts import MetricFacts

DEFAULT_SHARE = 0.005
"""Of the value, of a run or of the mean of several."""


@dataclass(frozen=True)
class Measured:
    """Metrics of one run, with the 95 % intervals that its evaluation rows leave open."""

    metrics: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    facts: Mapping[str, MetricFacts] = field(default_factory=dict)
    """What the metrics say of themselves."""

    def finite(self) -> dict[str, float]:
        """The metrics that are numbers."""
        return {name: value for name, value in self.metrics.items() if value is not None and math.isfinite(value)}

    def band_interval(self, name: str) -> tuple[float, float] | None:
        """The interval that widens a metric's band. None for a smooth one: last bits that another processor rounds
        differently move it far less than the share of its value."""
        facts = self.facts.get(name)
        return None if facts is not None and facts.smooth else self.intervals.get(name)


def one_run_band(value: float, interval: tuple[float, float] | None) -> Band:
    """Half a per cent around the value; where `interval` is given, that over the evaluation rows if it is wider.

    An interval is for what counts rows: there one answer that tips is more than half a per cent, and says nothing.
    """
    width = DEFAULT_SHARE * abs(value)
    low, high = interval if interval is not None else (value, value)
    return value, min(value - width, low), max(value + width, high)


def mean_band(values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> Band:
    """The band of the mean of several seeds: as wide as that of one run.

    How far seeds lie apart is no part of it. A reproduction runs the very same seeds, so that each is compared with
    itself (`RunTrace.tuned`); the spread of a few says nothing about rounding, and an interval that is made from two
    points spans almost any result.
    """
    mean = statistics.fmean(values)
    # the widest interval over the seeds: one number that is too narrow would fail a run that is the same
    half = max((high - low for low, high in intervals), default=0.0) / 2
    return one_run_band(mean, (mean - half, mean + half))


def around(value: float, band: Band) -> Band:
    """A band of the same width around another value, and no narrower than half a per cent of that."""
    middle, low, high = band
    return one_run_band(value, (value - (middle - low), value + (high - middle)))


def bands(runs: Sequence[Measured]) -> dict[str, Band]:
    """A band for each metric that every run has."""
    bands_by_name = {}
    for name in runs[0].metrics if runs else ():
        # a metric that one seed lacks has no mean to compare
        values = [value for run in runs if (value := run.metrics.get(name)) is not None and math.isfinite(value)]
        intervals = [found for run in runs if (found := run.band_interval(name)) is not None]
        if len(values) == len(runs):
            first = intervals[0] if intervals else None
            bands_by_name[name] = one_run_band(values[0], first) if len(runs) == 1 else mean_band(values, intervals)
    return bands_by_name
