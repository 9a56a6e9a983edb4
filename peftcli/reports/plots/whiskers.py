"""Base against tuned: a dot for each model, a whisker for its interval."""

from __future__ import annotations

from typing import Literal

from markupsafe import Markup

from peftcli.reports.numbers import is_missing
from peftcli.reports.plots.elements import tag
from peftcli.reports.plots.frame import picture, place
from peftcli.reports.plots.scale import Scale, cover
from peftcli.reports.scores import Score, metric_label

_HEIGHT = 64
_LANES = {"base": 14, "tuned": 36}


def whisker_plot(slug: str, score: Score) -> Markup:
    """Two lanes, base above tuned, on one scale: 0 to 100 % for rates, else the range of the values."""
    scale = _scale(score)
    label = metric_label(score.metric)
    description = f"{label}: base {score.value('base')}, tuned {score.value('tuned')}"
    return picture(
        slug,
        f"{label}, base and tuned",
        description,
        _axis(score, scale),
        _lane("base", score, scale),
        _lane("tuned", score, scale),
        height=_HEIGHT,
    )


def _scale(score: Score) -> Scale:
    if score.fraction:
        # shares keep their whole range, so that half a per cent looks like half a per cent
        return Scale(0.0, 1.0)
    values = [value for value in (score.base, score.tuned) if value is not None and not is_missing(value)]
    for interval in (score.base_interval, score.tuned_interval):
        values.extend(interval or ())
    # from zero where lower is better: a loss that halved must look halved
    return cover(values, pad=0.12, zero=score.lower_is_better and min(values, default=0.0) >= 0)


def _axis(score: Score, scale: Scale) -> list[Markup]:
    drawn = [tag("line", x1="0", x2="100%", y1=_HEIGHT - 14, y2=_HEIGHT - 14, class_="axis")]
    ticks = [0.0, 0.5, 1.0] if score.fraction else scale.ticks(4)
    for value in ticks:
        fraction = scale.fraction(value)
        anchor = "start" if fraction < 0.06 else "end" if fraction > 0.94 else "middle"
        text = f"{value:.0%}".replace("%", " %") if score.fraction else f"{value:g}"
        drawn.append(
            tag("line", x1=place(fraction), x2=place(fraction), y1="4", y2=_HEIGHT - 14, class_="grid"),
        )
        drawn.append(tag("text", text, x=place(fraction), y=_HEIGHT, class_="tick", text_anchor=anchor))
    return drawn


def _lane(which: Literal["base", "tuned"], score: Score, scale: Scale) -> list[Markup]:
    value, interval = (score.base, score.base_interval) if which == "base" else (score.tuned, score.tuned_interval)
    if value is None or is_missing(value):
        return []
    y = _LANES[which]
    drawn = []
    if interval:
        low, high = (place(scale.fraction(end)) for end in interval)
        drawn.append(tag("line", x1=low, x2=high, y1=y, y2=y, class_=f"whisker {which}"))
        drawn += [tag("line", x1=end, x2=end, y1=y - 5, y2=y + 5, class_=f"whisker {which}") for end in (low, high)]
    title = tag("title", f"{which}: {score.shown(value)}")
    style = "dot tuned" if which == "tuned" else "dot hollow base"
    return [*drawn, tag("circle", title, cx=place(scale.fraction(value)), cy=y, r="5", class_=style)]
