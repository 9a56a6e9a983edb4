"""Quality against a cost: a named point each, those that nobody beats in both marked and joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from peftcli.reports.plots.elements import tag
from peftcli.reports.plots.frame import Figure, LegendKey, horizontal_grid, picture, place, tick_label
from peftcli.reports.plots.scale import Scale, cover, cover_log
from peftcli.reports.visible import clipped

_HEIGHT = 240
_RIGHT_HALF = 0.6
_MAX_LABEL = 20
"""Characters beside a dot, as far as a phone has room; the legend has the whole name."""


@dataclass(frozen=True)
class Dot:
    """`style`: its class on the page. `front`: nobody is better in quality and cost at once."""

    name: str
    style: str
    cost: float
    value: float
    front: bool


def scatter(slug: str, title: str, dots: Sequence[Dot], shown_cost: Callable[[float], str], note: str) -> Figure:
    """The figure; `shown_cost` writes a cost for the axis."""
    costs, values = [dot.cost for dot in dots], [dot.value for dot in dots]
    along = cover_log(costs) or cover(costs, pad=0.08)
    up = cover(values, pad=0.12)
    description = "; ".join(f"{dot.name}: {shown_cost(dot.cost)}, {dot.value:.4g}" for dot in dots)
    drawing = picture(
        slug,
        title,
        description,
        horizontal_grid(up),
        tag("line", x1="0", x2="100%", y1="100%", y2="100%", class_="axis"),
        _ticks(along, shown_cost),
        [_dot(dot, along, up) for dot in dots],
        height=_HEIGHT,
    )
    keys = [LegendKey(dot.style, f"{dot.name}{' (front)' if dot.front else ''}", "dot") for dot in dots]
    return Figure(title, drawing, keys, f"{note}{'; logarithmic scale' if along.logarithmic else ''}")


def _ticks(along: Scale, shown_cost: Callable[[float], str]) -> list[Markup]:
    drawn = []
    for value in along.ticks(4):
        fraction = along.fraction(value)
        anchor = "start" if fraction < 0.06 else "end" if fraction > 0.9 else "middle"
        drawn.append(
            tag("text", shown_cost(value), x=place(fraction), y="100%", dy="18", class_="tick", text_anchor=anchor)
        )
    return drawn


def _dot(dot: Dot, along: Scale, up: Scale) -> list[Markup]:
    x, y = place(along.fraction(dot.cost)), place(1 - up.fraction(dot.value))
    at_right = along.fraction(dot.cost) > _RIGHT_HALF
    label = tag(
        "text", clipped(dot.name, _MAX_LABEL), x=x, y=y, dx="-12" if at_right else "12", dy="0.32em", class_="tick",
        text_anchor="end" if at_right else "start",
    )  # fmt: skip
    # a ring marks the front, for those who do not see colours too
    ring = tag("circle", cx=x, cy=y, r="8", class_="ring") if dot.front else None
    title = tag("title", f"{dot.name}: {tick_label(dot.value)}")
    return [
        part for part in (ring, tag("circle", title, cx=x, cy=y, r="4.5", class_=f"dot {dot.style}"), label) if part
    ]
