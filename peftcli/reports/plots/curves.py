"""Values over steps: one or more lines, points on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from peftcli.reports.plots.elements import tag
from peftcli.reports.plots.frame import Figure, LegendKey, horizontal_grid, picture, place, step_ticks, tick_label
from peftcli.reports.plots.scale import Scale, cover, cover_log
from peftcli.reports.series import Point
from peftcli.reports.smoothing import thin

_HEIGHT = 220
_CANVAS = 1000
_DOTS_SHOWN = 40


@dataclass(frozen=True)
class Curve:
    """One line. `style`: its class on the page. `dots`: mark the points. `labels`: a text for each point's tooltip.

    `bounding`: whether the vertical range must hold all of it (raw values may leave the picture at their spikes).
    """

    text: str
    style: str
    points: Sequence[Point]
    dots: bool = False
    bounding: bool = True
    in_legend: bool = True


def curve_chart(
    slug: str, title: str, description: str, curves: Sequence[Curve], *, note: str | None = None, rate: bool = False
) -> Figure:
    """A chart of curves over steps, as a figure. Curves without points are left out. `rate`: shares of one."""
    curves = [curve for curve in curves if curve.points]
    x_scale = _steps(curves)
    # a share of 0 or 1 would lie on the frame, half hidden
    y_scale = Scale(-0.04, 1.04) if rate else _values(curves)
    drawing = picture(
        slug,
        title,
        description,
        horizontal_grid(y_scale, label=_percent if rate else tick_label),
        step_ticks(x_scale),
        _lines(curves, x_scale, y_scale),
        [_dots(curve, x_scale, y_scale) for curve in curves if curve.dots],
        height=_HEIGHT,
    )
    keys = [LegendKey(curve.style, curve.text, "both" if curve.dots else "line") for curve in curves if curve.in_legend]
    notes = [text for text in (note, "logarithmic scale" if y_scale.logarithmic else None) if text]
    return Figure(title, drawing, keys, "; ".join(notes) or None)


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _steps(curves: Sequence[Curve]) -> Scale:
    steps = [step for curve in curves for step, _ in curve.points]
    if not steps or min(steps) == max(steps):
        # one step alone, or none, spans no range
        return Scale(0.0, float(max(steps, default=1) or 1) * 1.05)
    return Scale(float(min(0, *steps)), float(max(steps)))


def _values(curves: Sequence[Curve]) -> Scale:
    # raw values too: on a logarithmic scale their spikes leave room for the rest
    every = [value for curve in curves for _, value in curve.points]
    if logarithmic := cover_log(every):
        return logarithmic
    bounding = [value for curve in curves if curve.bounding for _, value in curve.points]
    loose = sorted(value for curve in curves if not curve.bounding for _, value in curve.points)
    if loose:  # all but the rarest raw values
        # one in a hundred below and three above may leave the picture: losses have spikes upwards
        bounding += [loose[int(0.01 * (len(loose) - 1))], loose[int(0.97 * (len(loose) - 1))]]
    return cover(bounding)


def _lines(curves: Sequence[Curve], x_scale: Scale, y_scale: Scale) -> Markup:
    paths = [
        tag("path", d=_path(thin(curve.points), x_scale, y_scale), class_=f"curve {curve.style}")
        for curve in curves
        if len(curve.points) > 1
    ]
    return tag(
        "svg",
        paths,
        width="100%",
        height="100%",
        viewBox=f"0 0 {_CANVAS} {_CANVAS}",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def _path(points: Sequence[Point], x_scale: Scale, y_scale: Scale) -> str:
    places = [
        f"{_CANVAS * x_scale.fraction(step):.1f} {_CANVAS * (1 - y_scale.fraction(value)):.1f}"
        for step, value in points
    ]
    return "M" + "L".join(places)


def _dots(curve: Curve, x_scale: Scale, y_scale: Scale) -> list[Markup]:
    # some dozens of dots, and always the last: a tooltip for each of a thousand points is a slow page
    stride = max(1, len(curve.points) // _DOTS_SHOWN)
    shown = [*curve.points[:-1:stride], curve.points[-1]]
    return [
        tag(
            "circle",
            tag("title", f"{curve.text}, step {step:,}: {value:.5g}"),
            cx=place(x_scale.fraction(step)),
            cy=place(1 - y_scale.fraction(value)),
            r="3.5",
            class_=f"dot {curve.style}",
        )
        for step, value in shown
    ]
