"""`compare.html`: several runs on one page, their curves over each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from peftcli.reports import numbers
from peftcli.reports.checks import run_checks
from peftcli.reports.compare import (
    COSTS,
    MAX_NAME,
    MAX_RUNS,
    Column,
    best_run,
    caveat,
    facts_in,
    labels,
    metric_names,
    summary,
)
from peftcli.reports.folder import RunFacts
from peftcli.reports.fronts import Standing, fronts_section
from peftcli.reports.plots.curves import Curve, curve_chart
from peftcli.reports.plots.frame import Figure
from peftcli.reports.scores import LOSS, Score, metric_label, scores
from peftcli.reports.sections.parts import Amount, Section, bound
from peftcli.reports.sections.row_parts import PartColumn, PartRow, RowPartsTable
from peftcli.reports.series import Point
from peftcli.reports.settings import Lines, parted_settings
from peftcli.reports.smoothing import smooth
from peftcli.reports.style import run_style
from peftcli.reports.templating import render
from peftcli.reports.verdict import judge
from peftcli.reports.visible import clipped

_METRIC_CHARTS = 4
_SHOWN = 80
_MAX_VALUE = 120


@dataclass(frozen=True)
class ScoreCell:
    """One metric of one run; a `text` in place of its number where it was not measured."""

    number: Amount | None
    text: str = numbers.MISSING
    interval: str | None = None
    is_best: bool = False


@dataclass(frozen=True)
class ResultRow:
    """A run with its verdict and its score in every metric. `style`: the line that it is drawn with."""

    style: str
    name: str
    grade: str
    headline: str
    scores: list[ScoreCell]


@dataclass(frozen=True)
class Results:
    """Every run in every metric."""

    metrics: list[str]
    runs: list[ResultRow]


@dataclass(frozen=True)
class CostRow:
    """What one run cost, in the order of the columns."""

    style: str
    name: str
    costs: list[Amount]


@dataclass(frozen=True)
class Costs:
    """What every run cost."""

    costs: list[str]
    runs: list[CostRow]


@dataclass(frozen=True)
class Settings:
    """Settings in which the runs are not alike, and those in which they are (in a fold under `alike_title`)."""

    names: list[str]
    differing: list[tuple[str, list[str]]]
    alike: list[tuple[str, list[str]]]
    alike_title: str


def render_comparison_html(
    runs: Sequence[RunFacts],
    first: Sequence[Section] = (),
    told: str | None = None,
    styles: Sequence[str] | None = None,
) -> str:
    """One page for up to `MAX_RUNS` runs, with the sections `first` before the others; `told` is its sentence in place of
    the one that is made from the runs, `styles` the classes that they are drawn with. Without sections of its own a page
    begins with quality against cost. Raises `ValueError` for no runs."""
    if not runs:
        raise ValueError("a comparison needs at least one run")
    # cut here once: curves, tables and styles all go by the same runs
    runs = list(runs)[:MAX_RUNS]
    names = labels(runs)
    looks = list(styles or map(run_style, range(len(runs))))[: len(runs)]
    built = [
        None if first else _fronts(runs, names, looks),
        _results(runs, names, looks),
        None if first else _sources(runs, names, looks),
        _costs(runs, names, looks),
        _curves(runs, names, looks),
        _settings_section(runs, names),
    ]
    return render(
        "comparison.jinja",
        count=len(runs),
        summary=told or summary(runs, names),
        caveat=caveat(runs),
        sections=[*first, *(section for section in built if section is not None)],
    )


def _fronts(runs: Sequence[RunFacts], names: Sequence[str], looks: Sequence[str]) -> Section | None:
    """By the headline metric of the first run, where the others have it too."""
    metric = _headline(runs)
    facts = facts_in(runs, metric)
    if facts is None:
        return None
    standings = [
        Standing(
            name=name,
            style=look,
            value=run.record.evaluation.tuned.get(metric),
            memory=run.record.peak_memory_bytes or None,
            seconds=run.record.seconds.training or None,
            trained=run.record.parameters.trainable or None,
        )
        for run, name, look in zip(runs, names, looks, strict=True)
    ]
    return fronts_section(standings, facts, clipped(metric_label(metric), MAX_NAME))


def _headline(runs: Sequence[RunFacts]) -> str:
    wanted = runs[0].record.evaluation.headline or LOSS
    return wanted if all(run.record.evaluation.tuned.get(wanted) is not None for run in runs) else LOSS


def _sources(runs: Sequence[RunFacts], names: Sequence[str], looks: Sequence[str]) -> Section | None:
    """The headline metric by source, where the runs have several and the same ones."""
    metric = _headline(runs)
    facts = facts_in(runs, metric)
    parts = runs[0].record.evaluation.sources
    known = [{source.name: source.tuned.get(metric) for source in run.record.evaluation.sources} for run in runs]
    if facts is None or len(parts) < 2:
        return None
    columns = [PartColumn(source.name, source.rows) for source in parts]
    rows = [
        PartRow(look, name, [found.get(source.name) for source in parts])
        for found, name, look in zip(known, names, looks, strict=True)
    ]
    shown = partial(numbers.metric_value, facts)
    table = RowPartsTable.of("By source", columns, rows, shown, facts.better == "higher")
    lead = f"{clipped(metric_label(metric), MAX_NAME)} on the rows of each source."
    return Section("sources", "By source", "comparison/row_parts.jinja", table, lead[:1].upper() + lead[1:])


def _results(runs: Sequence[RunFacts], names: Sequence[str], looks: Sequence[str]) -> Section:
    metrics = metric_names(runs)
    best = {metric: best_run(runs, metric) for metric in metrics}
    rows = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        verdict = judge(run.record, run_checks(run))
        of_run = {score.metric: score for score in scores(run.record)}
        cells = [_score(of_run.get(metric), is_best=best[metric] == index) for metric in metrics]
        rows.append(ResultRow(looks[index], name, verdict.grade, verdict.headline, cells))
    lead = "The best of each column is marked; intervals are 95 %."
    facts = Results([clipped(metric_label(metric), MAX_NAME) for metric in metrics], rows)
    return Section("metrics", "Results", "comparison/results.jinja", facts, lead)


def _score(score: Score | None, *, is_best: bool) -> ScoreCell:
    if score is None or score.tuned is None:
        return ScoreCell(None)
    number = Amount(score.tuned, bound(score.value("tuned")))
    between = " to ".join(score.shown(end) for end in score.tuned_interval) if score.tuned_interval else None
    return ScoreCell(number, interval=between, is_best=is_best)


def _costs(runs: Sequence[RunFacts], names: Sequence[str], looks: Sequence[str]) -> Section:
    rows = [
        CostRow(look, name, [_cost(column, run) for column in COSTS])
        for run, name, look in zip(runs, names, looks, strict=True)
    ]
    facts = Costs([column.title for column in COSTS], rows)
    return Section("costs", "Cost", "comparison/costs.jinja", facts)


def _cost(column: Column, run: RunFacts) -> Amount:
    value = column.value(run)
    return Amount(value, bound(column.write(value)))


def _curves(runs: Sequence[RunFacts], names: Sequence[str], looks: Sequence[str]) -> Section | None:
    loss = [smooth(run.series.column("loss")) for run in runs]
    evaluation = [run.series.evaluation("eval_loss") for run in runs]
    rates = [run.series.column("learning_rate") for run in runs]
    charts = [
        _overlay("loss", "Training loss, smoothed", loss, names, looks),
        _overlay("eval-loss", "Evaluation loss", evaluation, names, looks, dots=True),
        *_metric_charts(runs, names, looks),
        _overlay("rate", "Learning rate", rates, names, looks),
    ]
    drawn = [chart for chart in charts if chart is not None]
    return Section("curves", "Training", "charts.jinja", drawn) if drawn else None


def _metric_charts(runs: Sequence[RunFacts], names: Sequence[str], looks: Sequence[str]) -> list[Figure | None]:
    known = dict.fromkeys(name for run in runs for name in run.series.evaluation_names())
    charts = []
    for index, metric in enumerate([name for name in known if name != "eval_loss"][:_METRIC_CHARTS]):
        points = [run.series.evaluation(metric) for run in runs]
        label = clipped(metric_label(metric), MAX_NAME)
        facts = facts_in(runs, metric)
        rate = facts is not None and facts.fraction
        title = label[:1].upper() + label[1:]
        charts.append(_overlay(f"metric-{index}", title, points, names, looks, dots=True, rate=rate))
    return charts


def _overlay(
    slug: str,
    title: str,
    series: Sequence[Sequence[Point]],
    names: Sequence[str],
    looks: Sequence[str],
    *,
    dots: bool = False,
    rate: bool = False,
) -> Figure | None:
    curves = [
        Curve(name, look, points, dots=dots) for name, look, points in zip(names, looks, series, strict=True) if points
    ]
    if not curves:
        return None
    ends = "; ".join(f"{curve.text} ends at {curve.points[-1][1]:.4g}" for curve in curves)
    return curve_chart(slug, title, f"{title} of {len(curves)} runs: {ends}.", curves, rate=rate)


def _settings_section(runs: Sequence[RunFacts], names: Sequence[str]) -> Section | None:
    differing, alike = parted_settings(runs)

    def lines(part: Lines) -> Lines:
        return [
            (clipped(key, MAX_NAME), [clipped(value, _MAX_VALUE) for value in values]) for key, values in part[:_SHOWN]
        ]

    facts = Settings(list(names), lines(differing), lines(alike), f"{len(alike)} alike")
    return Section("settings", "Differences", "comparison/settings.jinja", facts) if differing or alike else None
