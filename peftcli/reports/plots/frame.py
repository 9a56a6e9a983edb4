"""What all pictures share: the frame with title and description, grid, ticks, legend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from peftcli.reports import numbers
from peftcli.reports.plots.elements import Child, tag
from peftcli.reports.plots.scale import Scale


@dataclass(frozen=True)
class LegendKey:
    """One entry of a legend. `style` is a class of the page's style, `shape` is `line`, `dot` or `both`."""

    style: str
    text: str
    shape: str = "line"


@dataclass(frozen=True)
class Figure:
    """A picture under its caption, with a legend. `style`: a further class of the drawing's frame."""

    title: str
    drawing: Markup
    keys: Sequence[LegendKey] = ()
    note: str | None = None
    style: str = ""


def place(fraction: float) -> str:
    """A place along the picture, as a percentage."""
    return f"{100 * fraction:.3f}%"


def picture(slug: str, title: str, description: str, *children: Child, height: int) -> Markup:
    """An SVG with a name and a description for those who do not see it. `slug` is unique on the page."""
    return tag(
        "svg",
        tag("title", title, id=f"{slug}-title"),
        tag("desc", description, id=f"{slug}-desc"),
        *children,
        class_="picture",
        role="img",
        width="100%",
        height=height,
        aria_labelledby=f"{slug}-title {slug}-desc",
    )


def key_mark(style: str, shape: str = "line") -> Markup:
    """A piece of the curve as drawn, so that its dashes are the key as much as its colour. `shape`: line, dot, both."""
    line = tag("line", x1="0", x2="22", y1="6", y2="6", class_=f"curve {style}") if shape != "dot" else None
    dot = tag("circle", cx="11", cy="6", r="3.5", class_=f"dot {style}") if shape != "line" else None
    return tag("svg", line, dot, width="22", height="12", class_="key", aria_hidden="true")


def horizontal_grid(scale: Scale, *, wanted: int = 4, label: Callable[[float], str] | None = None) -> list[Markup]:
    """Lines across at round values of the vertical scale, labels in the left margin."""
    drawn = []
    for value in scale.ticks(wanted):
        y = place(1 - scale.fraction(value))
        drawn.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        drawn.append(
            tag("text", (label or tick_label)(value), x="-8", y=y, dy="0.32em", class_="tick", text_anchor="end")
        )
    return drawn


def step_ticks(scale: Scale, *, wanted: int = 4) -> list[Markup]:
    """Step numbers below the picture; the last one carries the unit."""
    # 1.0001: a tick at the very end may lie beyond it by rounding
    values = [value for value in round_steps(scale, wanted) if scale.fraction(value) <= 1.0001]
    drawn = [tag("line", x1="0", x2="100%", y1="100%", y2="100%", class_="axis")]
    for value in values:
        fraction = scale.fraction(value)
        # labels at the ends would leave the picture if they were centred
        anchor = "start" if fraction < 0.04 else "end" if fraction > 0.9 else "middle"
        text = f"{value:,.0f}" if value != values[-1] else f"step {value:,.0f}"
        drawn.append(tag("text", text, x=place(fraction), y="100%", dy="18", class_="tick", text_anchor=anchor))
    return drawn


def round_steps(scale: Scale, wanted: int) -> list[float]:
    """The ticks that are whole steps, since there is no half step."""
    return [value for value in scale.ticks(wanted) if value == int(value)]


def tick_label(value: float) -> str:
    """Short and exact: 0.002 -> `0.002`, 5e-05 -> `5e-5`, 12000 -> `12 k`."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return numbers.compact(value).replace(".0 ", " ")
    text = f"{value:.4g}"
    if "e" in text or abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return text
