"""Several runs beside each other: one table, curves over each other, as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peftcli.ownership import MARKDOWN_MARK
from peftcli.reports import numbers
from peftcli.reports.checks import run_checks
from peftcli.reports.folder import RunFacts
from peftcli.reports.html import contents, page
from peftcli.reports.markdown import code
from peftcli.reports.markdown import table as markdown_table
from peftcli.reports.markup import Child, Markup, tag
from peftcli.reports.metric_facts import MetricFacts
from peftcli.reports.plots.curves import Curve, curve_chart
from peftcli.reports.plots.frame import key_mark
from peftcli.reports.scores import LOSS, Score, metric_label, scores
from peftcli.reports.sections.parts import amount, bound, details, flatten, section, table
from peftcli.reports.series import Point
from peftcli.reports.smoothing import smooth
from peftcli.reports.style import RUN_COLOURS
from peftcli.reports.verdict import judge
from peftcli.reports.visible import clipped, short_path

MAX_RUNS = 24
_MAX_METRICS = 16
_MAX_NAME = 60
_SETTINGS_SHOWN = 80
_NOT_SETTINGS = ("name", "output", "seed", "version")

Fact = Callable[[RunFacts], float | None]


@dataclass(frozen=True)
class Column:
    """One measured cost of a run. `write`: how its number is shown."""

    title: str
    value: Fact
    write: Callable[[float | None], str]


COSTS = (
    Column("Trained parameters", lambda run: run.record.parameters.trainable, numbers.count),
    Column("Adapter", lambda run: run.record.adapter_bytes or None, numbers.data_size),
    Column("Steps", lambda run: run.record.steps, numbers.count),
    Column("Training time", lambda run: run.record.seconds.training, numbers.duration),
    Column("Tokens/s", lambda run: run.record.tokens_per_second, numbers.count),
    Column("Peak memory", lambda run: run.record.peak_memory_bytes or None, numbers.data_size),
)


def labels(runs: Sequence[RunFacts]) -> list[str]:
    """A name for each run; equal names are told apart by folder, then by number."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [run.label or run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, start=1)]
    return [clipped(name, _MAX_NAME) for name in names]


def metric_names(runs: Sequence[RunFacts]) -> list[str]:
    names = dict.fromkeys(score.metric for run in runs for score in scores(run.record))
    return sorted(names, key=lambda name: name != LOSS)[:_MAX_METRICS]


def facts_in(runs: Sequence[RunFacts], metric: str) -> MetricFacts | None:
    """What the first run that knows a metric says of it."""
    return next((facts for run in runs if (facts := run.record.evaluation.facts.get(metric))), None)


def best_run(runs: Sequence[RunFacts], metric: str) -> int | None:
    """Index of the run that is best in a metric; None when fewer than two were measured, or nobody says which way."""
    facts = facts_in(runs, metric)
    values = [(run.record.evaluation.tuned.get(metric), index) for index, run in enumerate(runs)]
    measured = [(value, index) for value, index in values if value is not None]
    if len(measured) < 2 or facts is None:
        return None
    pick = min if facts.better == "lower" else max
    return pick(measured, key=lambda pair: pair[0])[1]


def render_comparison_html(runs: Sequence[RunFacts]) -> str:
    """One page for up to `MAX_RUNS` runs; raises `ValueError` for none."""
    if not runs:
        raise ValueError("a comparison needs at least one run")
    runs = list(runs)[:MAX_RUNS]
    names = labels(runs)
    built = [
        ("metrics", "Results", _results(runs, names)),
        ("costs", "Cost", _costs(runs, names)),
        ("curves", "Training", _curves(runs, names)),
        ("settings", "Differences", _differences(runs, names)),
    ]
    shown = [(slug, title, body) for slug, title, body in built if body is not None]
    head = tag(
        "header",
        tag("p", "Comparison", class_="eyebrow"),
        tag("h1", f"{len(runs)} runs beside each other"),
        tag("p", _summary(runs, names), class_="sentence"),
        tag("p", caveat, class_="caveat") if (caveat := _caveat(runs)) else None,
        class_="masthead",
    )
    return page(
        f"{len(runs)} runs compared",
        head,
        [contents([entry[:2] for entry in shown])],
        [body for _, _, body in shown],
        footer="Made by peftcli from the run.json and metrics.jsonl of each run.",
    )


def _summary(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    """Which run is best, said metric by metric."""
    winners: dict[int, list[str]] = {}
    for metric in metric_names(runs):
        if (best := best_run(runs, metric)) is not None:
            winners.setdefault(best, []).append(metric_label(metric))
    if not winners:
        return "No metric was measured for two of these runs."
    said = [f"{names[index]} is best in {listed(metrics)}" for index, metrics in winners.items()]
    return f"{'; '.join(said)}."


def unlike(runs: Sequence[RunFacts]) -> list[str]:
    """What must be alike for a comparison to be one of methods, and is not."""
    facts: dict[str, Callable[[RunFacts], object]] = {
        "base model": lambda run: run.record.base,
        "task": lambda run: run.record.task,
        "evaluation rows": lambda run: run.record.evaluation.rows,
        "training data": lambda run: _stream(run, "train"),
        "evaluation data": lambda run: _stream(run, "validation"),
        "status": lambda run: run.record.status,
    }
    return [name for name, fact in facts.items() if any(fact(run) != fact(runs[0]) for run in runs[1:])]


def _stream(run: RunFacts, split: str) -> object:
    """What the data of a split is known by: the hash of its tokens."""
    facts = run.record.data.get(split)
    return facts.get("stream_sha256") if isinstance(facts, dict) else None


def _caveat(runs: Sequence[RunFacts]) -> str | None:
    differing = unlike(runs)
    return f"Not like with like: these runs differ in {listed(differing)}." if differing else None


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _name(index: int, name: str) -> Markup:
    return tag("span", key_mark(f"run-{index % len(RUN_COLOURS)}"), tag("span", name, dir="auto"), class_="run-name")


def _results(runs: Sequence[RunFacts], names: Sequence[str]) -> Markup:
    metrics = metric_names(runs)
    best = {metric: best_run(runs, metric) for metric in metrics}
    rows: list[list[Child]] = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        found = {score.metric: score for score in scores(run.record)}
        cells = [_score(found.get(metric), is_best=best[metric] == index) for metric in metrics]
        rows.append([_name(index, name), _verdict(run), *cells])
    headers = ["Run", "Verdict", *(clipped(metric_label(metric), _MAX_NAME) for metric in metrics)]
    return section(
        "metrics",
        "Results",
        table("Tuned models by metric", headers, rows),
        lead="The best of each column is marked; intervals are 95 %.",
    )


def _verdict(run: RunFacts) -> Markup:
    verdict = judge(run.record, run_checks(run))
    return tag("span", verdict.headline, class_=f"verdict-word {verdict.grade}")


def _score(score: Score | None, *, is_best: bool) -> Markup:
    if score is None or score.tuned is None:
        return tag("span", numbers.MISSING)
    interval = None
    if score.tuned_interval:
        low, high = (score.shown(end) for end in score.tuned_interval)
        interval = tag("span", f"{low} to {high}", class_="interval")
    value = amount(score.tuned, bound(score.value("tuned")))
    mark = tag("span", "best", class_="badge good") if is_best else None
    return tag("span", tag("strong", value) if is_best else value, " ", mark, interval)


def _costs(runs: Sequence[RunFacts], names: Sequence[str]) -> Markup:
    rows = [
        [_name(index, name), *(amount(column.value(run), bound(column.write(column.value(run)))) for column in COSTS)]
        for index, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    headers = ["Run", *(column.title for column in COSTS)]
    return section("costs", "Cost", table("What each run cost", headers, rows, numeric=True))


def _curves(runs: Sequence[RunFacts], names: Sequence[str]) -> Markup | None:
    charts = [
        _overlay("loss", "Training loss, smoothed", [smooth(run.series.column("loss")) for run in runs], names),
        _overlay(
            "eval-loss", "Evaluation loss", [run.series.evaluation("eval_loss") for run in runs], names, dots=True
        ),
    ]
    others = [name for name in dict.fromkeys(n for run in runs for n in run.series.evaluation_names())]
    for index, metric in enumerate([name for name in others if name != "eval_loss"][:4]):
        points = [run.series.evaluation(metric) for run in runs]
        label = clipped(metric_label(metric), _MAX_NAME)
        facts = facts_in(runs, metric)
        rate = facts is not None and facts.fraction
        charts.append(_overlay(f"metric-{index}", label[:1].upper() + label[1:], points, names, dots=True, rate=rate))
    charts.append(_overlay("rate", "Learning rate", [run.series.column("learning_rate") for run in runs], names))
    drawn = [chart for chart in charts if chart is not None]
    return section("curves", "Training", tag("div", drawn, class_="charts")) if drawn else None


def _overlay(
    slug: str,
    title: str,
    series: Sequence[Sequence[Point]],
    names: Sequence[str],
    *,
    dots: bool = False,
    rate: bool = False,
) -> Markup | None:
    curves = [
        Curve(name, f"run-{index % len(RUN_COLOURS)}", points, dots=dots)
        for index, (name, points) in enumerate(zip(names, series, strict=True))
        if points
    ]
    if not curves:
        return None
    ends = "; ".join(f"{curve.text} ends at {curve.points[-1][1]:.4g}" for curve in curves)
    return curve_chart(slug, title, f"{title} of {len(curves)} runs: {ends}.", curves, rate=rate)


def _differences(runs: Sequence[RunFacts], names: Sequence[str]) -> Markup | None:
    """Settings in which the runs are not alike, and a fold for those in which they are."""
    columns = [dict(_settings(run)) for run in runs]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    differing = [key for key in keys if len({column.get(key) for column in columns}) > 1]
    alike = [key for key in keys if key not in differing]

    def lines(chosen: Sequence[str]) -> list[list[Child]]:
        return [
            [clipped(key, _MAX_NAME), *(clipped(column.get(key, numbers.MISSING), 120) for column in columns)]
            for key in chosen[:_SETTINGS_SHOWN]
        ]

    headers = ["Setting", *names]
    parts = [table("In what they differ", headers, lines(differing)) if differing else None]
    if alike:
        parts.append(details(f"{len(alike)} alike", table("In what they are alike", headers, lines(alike))))
    return section("settings", "Differences", *parts) if keys else None


def _settings(run: RunFacts) -> list[tuple[str, str]]:
    record = run.record
    own = {
        "method": record.method,
        "base": short_path(record.base),
        "seed": str(record.seed),
        "peftcli": record.version,
    }
    if record.learning_rate is not None:
        own["learning_rate"] = f"{record.learning_rate:.3g}"
    # what the recipe says, with how the rest was resolved behind it
    recipe = {key: value for key, value in record.recipe.items() if key not in _NOT_SETTINGS}
    return [*own.items(), *flatten(recipe), *flatten(record.settings), *flatten(record.environment, "environment.")]


def render_comparison_markdown(runs: Sequence[RunFacts]) -> str:
    """The comparison as Markdown tables; raises `ValueError` for no runs."""
    if not runs:
        raise ValueError("a comparison needs at least one run")
    names = labels(runs)
    metrics = metric_names(runs)
    best = {metric: best_run(runs, metric) for metric in metrics}
    results, costs = [], []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        found = {score.metric: score for score in scores(run.record)}
        cells = [_cell(found.get(metric), is_best=best[metric] == index) for metric in metrics]
        results.append([code(name), judge(run.record, run_checks(run)).headline, *cells])
        costs.append([code(name), *(column.write(column.value(run)) for column in COSTS)])
    heads = ["Run", "Verdict", *(code(metric_label(metric)) for metric in metrics)]
    return "\n\n".join(
        [
            f"## {len(runs)} runs beside each other",
            *([caveat] if (caveat := _caveat(runs)) else []),
            markdown_table(heads, results),
            markdown_table(["Run", *(column.title for column in COSTS)], costs),
            MARKDOWN_MARK + "\n",
        ]
    )


def _cell(score: Score | None, *, is_best: bool) -> str:
    if score is None or score.tuned is None:
        return numbers.MISSING
    return f"**{score.value('tuned')}**" if is_best else score.value("tuned")
