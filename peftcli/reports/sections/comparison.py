"""Base against tuned, metric by metric: dots with whiskers, then the numbers."""

from __future__ import annotations

from peftcli.reports.folder import RunFacts
from peftcli.reports.markup import Markup, join, tag
from peftcli.reports.plots.frame import Key, legend
from peftcli.reports.plots.whiskers import whisker_plot
from peftcli.reports.record import EvaluationRecord, ExpectResult, Interval, RunRecord
from peftcli.reports.scores import Score, metric_label, score_of, scores
from peftcli.reports.sections.data import MAX_SOURCES
from peftcli.reports.sections.parts import amount, section, table
from peftcli.reports.visible import clipped, short_path

_MAX_METRICS = 24
_RELATIONS = {"better": "better", "worse": "worse", "unclear": "no clear change", "unmeasured": "not measured"}


def comparison_section(run: RunFacts) -> Markup | None:
    """None when nothing was evaluated."""
    found = scores(run.record)[:_MAX_METRICS]
    if not found and not run.record.expect:
        return None
    plots = [_plot(index, score) for index, score in enumerate(found) if score.relation != "unmeasured"]
    numbers = table(
        "Metrics of base and tuned model", ["Metric", "Base", "Tuned", "Change"], [_row(score) for score in found]
    )
    return section(
        "comparison",
        "Base and tuned",
        tag("div", _legend(), plots, class_="whiskers") if plots else None,
        numbers if found else None,
        _by_source(run.record.evaluation),
        _gates(run.record),
        lead=_lead(run.record),
    )


def _lead(record: RunRecord) -> str | None:
    if not record.evaluation.tuned:
        return None
    rows = record.evaluation.rows
    intervals = record.evaluation.intervals
    on_rows = f"On {rows:,} held-out rows. " if rows else ""
    whiskers = "Whiskers are 95 % intervals." if intervals.base or intervals.tuned else "No intervals were measured."
    return on_rows + whiskers


def _legend() -> Markup:
    return tag("p", legend([Key("hollow base", "base", "dot"), Key("tuned", "tuned", "dot")]))


def _plot(index: int, score: Score) -> Markup:
    label = metric_label(score.metric)
    direction = tag("span", score.direction, class_="note")
    name = tag("div", tag("strong", clipped(label, 60)), direction, class_="whisker-name")
    return tag("div", name, tag("div", whisker_plot(f"whisker-{index}", score), class_="lanes"), class_="whisker-row")


def _row(score: Score) -> list[Markup]:
    return [
        join([clipped(metric_label(score.metric), 60)]),
        _cell(score, score.base, score.base_interval),
        _cell(score, score.tuned, score.tuned_interval),
        join(
            [
                tag("strong", score.change, class_=f"relation {score.relation}"),
                tag("span", _RELATIONS[score.relation], class_="interval"),
            ]
        ),
    ]


def _cell(score: Score, value: float | None, interval: Interval | None) -> Markup:
    shown = amount(value, score.shown(value))
    between = " to ".join(score.shown(end) for end in interval) if interval else None
    return join([tag("span", shown, class_="whole"), tag("span", between, class_="interval") if between else None])


def _by_source(evaluation: EvaluationRecord) -> Markup | None:
    if not evaluation.sources:
        return None
    rows = [
        [
            clipped(short_path(source.name), 120),
            f"{source.rows:,}",
            clipped(metric_label(metric), 60),
            _amount(evaluation, metric, source.base.get(metric)),
            _amount(evaluation, metric, value),
        ]
        for source in evaluation.sources[:MAX_SOURCES]
        for metric, value in list(source.tuned.items())[:_MAX_METRICS]
    ]
    return table("Metrics by source", ["Source", "Rows", "Metric", "Base", "Tuned"], rows)


def _amount(evaluation: EvaluationRecord, metric: str, value: float | None) -> Markup:
    return amount(value, score_of(evaluation, metric).shown(value))


def _gates(record: RunRecord) -> Markup | None:
    gates: list[ExpectResult] = record.expect
    if not gates:
        return None
    rows = [
        [
            clipped(metric_label(gate.metric), 60),
            clipped(gate.wanted, 60),
            _amount(record.evaluation, gate.metric, gate.found),
            tag("strong", "met" if gate.held else "not met", class_="relation " + ("better" if gate.held else "worse")),
        ]
        for gate in gates
    ]
    return table("What the recipe expects", ["Metric", "Wanted", "Found", "Result"], rows)
