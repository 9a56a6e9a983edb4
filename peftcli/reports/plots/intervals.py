"""Differences to the best: a lane for each, a dot with its interval, and the line where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from peftcli.reports.plots.elements import tag
from peftcli.reports.plots.frame import Figure, picture, place
from peftcli.reports.plots.scale import Scale, cover

_LANE = 34
_FOOT = 22


@dataclass(frozen=True)
class Lane:
    """`value` with its interval; `style`: the class of the dot."""

    name: str
    style: str
    value: float
    low: float
    high: float


def interval_chart(slug: str, title: str, lanes: Sequence[Lane], shown: Callable[[float], str], note: str) -> Figure:
    """The figure; the scale holds zero. `shown` writes a value. Raises `ValueError` for no lanes."""
    scale = cover([0.0, *(end for lane in lanes for end in (lane.low, lane.high, lane.value))], pad=0.06)
    height = _LANE * len(lanes) + _FOOT
    foot = height - _FOOT
    described = "; ".join(
        f"{lane.name}: {shown(lane.value)} ({shown(lane.low)} to {shown(lane.high)})" for lane in lanes
    )
    zero = place(scale.fraction(0.0))
    drawing = picture(
        slug,
        title,
        described,
        _ticks(scale, foot, shown),
        tag("line", x1=zero, x2=zero, y1="0", y2=foot, class_="axis"),
        [_lane(lane, number, scale, shown) for number, lane in enumerate(lanes)],
        height=height,
    )
    return Figure(title, drawing, (), note)


def _ticks(scale: Scale, foot: int, shown: Callable[[float], str]) -> list[Markup]:
    drawn = [tag("line", x1="0", x2="100%", y1=foot, y2=foot, class_="axis")]
    for value in scale.ticks(4):
        fraction = scale.fraction(value)
        anchor = "start" if fraction < 0.06 else "end" if fraction > 0.94 else "middle"
        drawn.append(tag("line", x1=place(fraction), x2=place(fraction), y1="0", y2=foot, class_="grid"))
        drawn.append(tag("text", shown(value), x=place(fraction), y=foot + 18, class_="tick", text_anchor=anchor))
    return drawn


def _lane(lane: Lane, number: int, scale: Scale, shown: Callable[[float], str]) -> list[Markup]:
    top = number * _LANE
    y = top + 24
    low, high, middle = (place(scale.fraction(value)) for value in (lane.low, lane.high, lane.value))
    title = tag("title", f"{lane.name}: {shown(lane.value)}")
    return [
        # over its lane, where a phone has room for it
        tag("text", lane.name, x="0", y=top + 12, class_="tick"),
        tag("line", x1=low, x2=high, y1=y, y2=y, class_="whisker tuned"),
        *(tag("line", x1=end, x2=end, y1=y - 5, y2=y + 5, class_="whisker tuned") for end in (low, high)),
        tag("circle", title, cx=middle, cy=y, r="4.5", class_=f"dot {lane.style}"),
    ]  # fmt: skip
