"""Base against tuned, metric by metric: dots with whiskers, then the numbers."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from peftcli.reports.folder import RunFacts
from peftcli.reports.plots.frame import LegendKey
from peftcli.reports.plots.whiskers import whisker_plot
from peftcli.reports.record import EvaluationRecord, Interval, RunRecord
from peftcli.reports.scores import Score, metric_label, score_of, scores
from peftcli.reports.sections.data import MAX_SOURCES
from peftcli.reports.sections.parts import Amount, Section
from peftcli.reports.visible import clipped, short_path

_MAX_METRICS = 24
_MAX_NAME = 60
_RELATIONS = {"better": "better", "worse": "worse", "unclear": "no clear change", "unmeasured": "not measured"}
_KEYS = (LegendKey("hollow base", "base", "dot"), LegendKey("tuned", "tuned", "dot"))


@dataclass(frozen=True)
class Plot:
    """One metric of both models on one scale. `direction`: which way is better."""

    name: str
    direction: str
    drawing: Markup


@dataclass(frozen=True)
class NumberWithInterval:
    """A number with its interval, where there is one."""

    number: Amount
    interval: str | None


@dataclass(frozen=True)
class ScoreRow:
    """One metric of both models. `relation`: a class of the page's style, `meaning` the same in words."""

    metric: str
    base: NumberWithInterval
    tuned: NumberWithInterval
    change: str
    relation: str
    meaning: str


@dataclass(frozen=True)
class SourceScoreRow:
    """One metric on the rows of one source."""

    source: str
    rows: str
    metric: str
    base: Amount
    tuned: Amount


@dataclass(frozen=True)
class GateRow:
    """What the recipe expects of one metric, and whether it holds."""

    metric: str
    wanted: str
    found: Amount
    held: bool


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured of both models."""

    plots: list[Plot]
    scores: list[ScoreRow]
    sources: list[SourceScoreRow]
    gates: list[GateRow]
    keys: tuple[LegendKey, ...] = _KEYS


def comparison_section(run: RunFacts) -> Section | None:
    """None when nothing was evaluated."""
    shown = scores(run.record)[:_MAX_METRICS]
    if not shown and not run.record.expect:
        return None
    facts = Comparison(
        # without both numbers there is nothing to draw; the table below still has the row
        [_plot(index, score) for index, score in enumerate(shown) if score.relation != "unmeasured"],
        [_row(score) for score in shown],
        _by_source(run.record.evaluation),
        _gates(run.record),
    )
    return Section("comparison", "Base and tuned", "report/comparison.jinja", facts, _lead(run.record))


def _lead(record: RunRecord) -> str | None:
    if not record.evaluation.tuned:
        return None
    rows = record.evaluation.rows
    intervals = record.evaluation.intervals
    on_rows = f"On {rows:,} held-out rows. " if rows else ""
    whiskers = "Whiskers are 95 % intervals." if intervals.base or intervals.tuned else "No intervals were measured."
    return on_rows + whiskers


def _name(metric: str) -> str:
    return clipped(metric_label(metric), _MAX_NAME)


def _plot(index: int, score: Score) -> Plot:
    return Plot(_name(score.metric), score.direction, whisker_plot(f"whisker-{index}", score))


def _row(score: Score) -> ScoreRow:
    return ScoreRow(
        _name(score.metric),
        _measured(score, score.base, score.base_interval),
        _measured(score, score.tuned, score.tuned_interval),
        score.change,
        score.relation,
        _RELATIONS[score.relation],
    )


def _measured(score: Score, value: float | None, interval: Interval | None) -> NumberWithInterval:
    between = " to ".join(score.shown(end) for end in interval) if interval else None
    return NumberWithInterval(Amount(value, score.shown(value)), between)


def _by_source(evaluation: EvaluationRecord) -> list[SourceScoreRow]:
    return [
        SourceScoreRow(
            clipped(short_path(source.name), 120),
            f"{source.rows:,}",
            _name(metric),
            _amount(evaluation, metric, source.base.get(metric)),
            _amount(evaluation, metric, value),
        )
        for source in evaluation.sources[:MAX_SOURCES]
        for metric, value in list(source.tuned.items())[:_MAX_METRICS]
    ]


def _amount(evaluation: EvaluationRecord, metric: str, value: float | None) -> Amount:
    return Amount(value, score_of(evaluation, metric).shown(value))


def _gates(record: RunRecord) -> list[GateRow]:
    return [
        GateRow(
            _name(gate.metric),
            clipped(gate.wanted, _MAX_NAME),
            _amount(record.evaluation, gate.metric, gate.found),
            gate.held,
        )
        for gate in record.expect
    ]
