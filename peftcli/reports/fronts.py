"""Quality against what it costs: the Pareto fronts of several runs, for every page that has several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from peftcli.reports import numbers
from peftcli.reports.metric_facts import MetricFacts
from peftcli.reports.plots.frame import Figure
from peftcli.reports.plots.scatter import Dot, scatter
from peftcli.reports.sections.parts import Section

SLUG = "fronts"
"""The section's anchor."""


@dataclass(frozen=True)
class Standing:
    """Where one of them stands: its headline metric, and its costs; None for what was not measured. `style`: its class on
    the page."""

    name: str
    style: str
    value: float | None
    memory: float | None
    """Peak, bytes."""
    seconds: float | None
    """Of training."""
    trained: float | None
    """Parameters."""


_COSTS: tuple[tuple[str, str, Callable[[Standing], float | None], Callable[[float], str]], ...] = (
    ("memory", "Peak memory", lambda standing: standing.memory, numbers.data_size),
    ("time", "Training time", lambda standing: standing.seconds, numbers.duration),
    ("size", "Trained parameters", lambda standing: standing.trained, numbers.count),
)
"""What quality is drawn against: slug, title, value, how it is written."""


def fronts_section(standings: Sequence[Standing], facts: MetricFacts, label: str) -> Section | None:
    """A chart for each cost; None where fewer than two were measured. `label`: of the metric."""
    figures = [
        _figure(slug, title, [(each, value, cost(each)) for each in standings if (value := each.value) is not None],
                shown, facts, label)
        for slug, title, cost, shown in _COSTS
    ]  # fmt: skip
    drawn = [figure for figure in figures if figure is not None]
    better = "lower is better" if facts.better == "lower" else "higher is better"
    lead = f"Vertical: {label}, {better}. A ring marks what nothing else beats in both; the rest costs more for less."
    return Section(SLUG, "Quality and cost", "charts.jinja", drawn, lead) if drawn else None


def _figure(
    slug: str,
    title: str,
    measured: Sequence[tuple[Standing, float, float | None]],
    shown: Callable[[float], str],
    facts: MetricFacts,
    label: str,
) -> Figure | None:
    known = [(each, value, cost) for each, value, cost in measured if cost is not None]
    if len(known) < 2:
        return None
    front = pareto_front({each.name: (value, cost) for each, value, cost in known}, facts)
    dots = [Dot(each.name, each.style, cost, value, each.name in front) for each, value, cost in known]
    return scatter(f"front-{slug}", f"{label[:1].upper()}{label[1:]} against {title.lower()}", dots, shown, title)


def pareto_front(places: Mapping[str, tuple[float, float]], facts: MetricFacts) -> set[str]:
    """Names that no other beats in quality and cost, (value, cost), at once."""
    sign = 1.0 if facts.better == "lower" else -1.0
    signed = {name: (sign * value, cost) for name, (value, cost) in places.items()}

    def beaten(own: tuple[float, float]) -> bool:
        return any(other[0] <= own[0] and other[1] <= own[1] and other != own for other in signed.values())

    return {name for name, own in signed.items() if not beaten(own)}
