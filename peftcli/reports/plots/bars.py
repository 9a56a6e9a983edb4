"""Bars: a list of named amounts, and a histogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from peftcli.reports.plots.elements import tag
from peftcli.reports.plots.frame import horizontal_grid, picture, place, tick_label
from peftcli.reports.plots.scale import Scale

_ROW = 34
_HISTOGRAM_HEIGHT = 150
_EDGE_LABELS = 5


@dataclass(frozen=True)
class Bar:
    """`text`: the amount as written at the right end."""

    name: str
    value: float
    text: str
    style: str = "tuned"


def bar_list(slug: str, title: str, description: str, bars: Sequence[Bar]) -> Markup:
    """Names and amounts above bars whose lengths are relative to the largest."""
    largest = max((bar.value for bar in bars), default=0.0) or 1.0
    rows = [_row(bar, index * _ROW, bar.value / largest) for index, bar in enumerate(bars)]
    return picture(slug, title, description, rows, height=_ROW * len(bars))


def _row(bar: Bar, top: int, share: float) -> list[Markup]:
    return [
        tag("text", bar.name, x="0", y=top + 13, class_="bar-name"),
        tag("text", bar.text, x="100%", y=top + 13, class_="bar-text", text_anchor="end"),
        tag("rect", x="0", y=top + 19, width="100%", height="7", rx="3.5", class_="bar-track"),
        tag("rect", x="0", y=top + 19, width=place(max(0.0, share)), height="7", rx="3.5", class_=f"bar {bar.style}"),
    ]


def histogram(slug: str, title: str, description: str, bins: Sequence[tuple[float, float, int]], unit: str) -> Markup:
    """Counts over neighbouring bins (low, high, count), each drawn as wide as its share of the range."""
    # 5 % of air above the highest bar
    scale = Scale(0.0, max(1.0, max((number for _, _, number in bins), default=1) * 1.05))
    along = Scale(bins[0][0], bins[-1][1]) if bins else Scale(0.0, 1.0)
    bars = [
        tag(
            "rect",
            tag("title", f"{low:g} to {high:g} {unit}: {number:,} rows"),
            # a gap of 8 % on both sides, so that neighbouring bars do not run together
            x=place(along.fraction(low + 0.08 * (high - low))),
            y=place(1 - scale.fraction(number)),
            width=place(along.fraction(high - 0.08 * (high - low)) - along.fraction(low + 0.08 * (high - low))),
            height=place(scale.fraction(number)),
            class_="bar tuned",
        )
        for low, high, number in bins
    ]
    axis = tag("line", x1="0", x2="100%", y1="100%", y2="100%", class_="axis")
    grid = horizontal_grid(scale, wanted=3)
    return picture(slug, title, description, grid, bars, axis, _edges(bins, along, unit), height=_HISTOGRAM_HEIGHT)


def _edges(bins: Sequence[tuple[float, float, int]], along: Scale, unit: str) -> list[Markup]:
    """Bin edges as ticks: a few, and always the last, which carries the unit."""
    if not bins:
        return []
    # rounded up: `-(-a // b)`
    stride = max(1, -(-len(bins) // _EDGE_LABELS))
    inner = [index for index in range(0, len(bins), stride) if index <= len(bins) - stride or index == 0]
    drawn = [
        _edge(fraction, tick_label(bins[index][0]), "middle" if index else "start")
        for index in inner
        # the last label, with its unit, takes the right fifth
        if (fraction := along.fraction(bins[index][0])) < 0.8
    ]
    return [*drawn, _edge(1.0, f"{tick_label(bins[-1][1])} {unit}", "end")]


def _edge(fraction: float, text: str, anchor: str) -> Markup:
    return tag("text", text, x=place(fraction), y="100%", dy="18", class_="tick", text_anchor=anchor)
