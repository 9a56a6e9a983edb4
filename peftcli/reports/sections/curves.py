"""How training went: loss, learning rate, gradient norm and every other evaluation metric over steps."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.reports import numbers
from peftcli.reports.folder import RunFacts
from peftcli.reports.plots.curves import Curve, curve_chart
from peftcli.reports.plots.frame import Figure, tick_label
from peftcli.reports.scores import LOSS, Score, metric_label, score_of
from peftcli.reports.sections.parts import Section
from peftcli.reports.series import Point, Series
from peftcli.reports.smoothing import smooth
from peftcli.reports.visible import clipped

_MAX_METRIC_CHARTS = 6


def curves_section(run: RunFacts) -> Section | None:
    """Charts of what was logged; None when the run logged nothing."""
    series = run.series
    charts = [
        _loss(series),
        _single(series, "learning_rate", "Learning rate", "rate"),
        _gradient(series),
        *_metrics(run),
    ]
    drawn = [chart for chart in charts if chart is not None]
    if not drawn:
        return None
    return Section("curves", "Training", "charts.jinja", drawn, _lead(run))


def _lead(run: RunFacts) -> str:
    record = run.record
    epochs = f" over {record.epochs:.3g} epochs" if record.epochs else ""
    return f"{record.steps:,} steps{epochs}, {numbers.compact(record.tokens)} tokens."


def _loss(series: Series) -> Figure | None:
    raw, evaluation = series.column("loss"), series.evaluation("eval_loss")
    if not raw and not evaluation:
        return None
    curves = [
        # raw steps do not set the scale: one spike would press the smoothed curve flat
        Curve("train, each step", "train raw", raw, bounding=False),
        Curve("train, smoothed", "train", smooth(raw)),
        Curve("evaluation", "evaluation", evaluation, dots=True),
    ]
    return curve_chart("loss", "Loss", _describe("Training loss", raw, "evaluation loss", evaluation), curves)


def _gradient(series: Series) -> Figure | None:
    norms = series.column("grad_norm")
    if not norms:
        return None
    curves = [
        Curve("each step", "gradient raw", norms, bounding=False),
        Curve("smoothed", "gradient", smooth(norms)),
    ]
    return curve_chart("gradient", "Gradient norm", _describe("Gradient norm", norms), curves)


def _single(series: Series, column: str, title: str, style: str) -> Figure | None:
    points = series.column(column)
    if not points:
        return None
    highest = max(points, key=lambda point: point[1])
    note = f"Highest: {tick_label(highest[1])} at step {highest[0]:,}"
    return curve_chart(
        column.replace("_", "-"),
        title,
        _describe(title, points),
        [Curve(title, style, points, in_legend=False)],
        note=note,
    )


def _metrics(run: RunFacts) -> list[Figure]:
    series = run.series
    drawn: list[Figure] = []
    for name in series.evaluation_names():
        points = series.evaluation(name)
        # a single evaluation is in the table of results; the loss has a chart of its own
        if name == LOSS or len(points) < 2 or len(drawn) == _MAX_METRIC_CHARTS:
            continue
        drawn.append(_metric_chart(f"metric-{len(drawn)}", score_of(run.record.evaluation, name), points))
    return drawn


def _metric_chart(slug: str, score: Score, points: Sequence[Point]) -> Figure:
    label = clipped(metric_label(score.metric), 60)
    curve = Curve(label, "evaluation", points, dots=True, in_legend=False)
    title = label[:1].upper() + label[1:]
    return curve_chart(slug, title, _describe(label, points), [curve], rate=score.fraction)


def _describe(name: str, points: Sequence[Point], other: str = "", others: Sequence[Point] = ()) -> str:
    texts = [_from_to(name, points), _from_to(other, others)]
    return "; ".join(text for text in texts if text) + "."


def _from_to(name: str, points: Sequence[Point]) -> str:
    if not points:
        return ""
    (first_step, first), (last_step, last) = points[0], points[-1]
    return f"{name} from {first:.4g} at step {first_step:,} to {last:.4g} at step {last_step:,}"
