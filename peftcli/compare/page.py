"""`report.html` of a comparison: the recommendation, and quality against memory, time and size, before the runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from peftcli.compare.figures import Variant, pareto_front
from peftcli.compare.judging import Verdict
from peftcli.compare.session import Ended
from peftcli.reports import numbers
from peftcli.reports.compare_html import render_comparison_html
from peftcli.reports.folder import read_run
from peftcli.reports.plots.frame import Figure
from peftcli.reports.plots.scatter import Dot, scatter
from peftcli.reports.scores import metric_label
from peftcli.reports.sections.parts import Section
from peftcli.reports.style import run_style

Cost = Callable[[Variant], float]
COSTS: tuple[tuple[str, str, Cost, Callable[[float], str]], ...] = (
    ("memory", "Peak memory", lambda variant: float(variant.peak_memory_bytes), numbers.data_size),
    ("time", "Training time", lambda variant: variant.seconds, numbers.duration),
    ("size", "Trained parameters", lambda variant: float(variant.trainable), numbers.count),
)
"""What quality is drawn against: slug, title, value, how it is written."""


def render_page(ended: Sequence[Ended], variants: Sequence[Variant], verdict: Verdict) -> str:
    """The page, of every member that came to its end."""
    runs = [read_run(each.run) for each in ended if each.record is not None]
    failed = [
        f"{each.member.folder.removeprefix('members/')} failed: {each.failure}." for each in ended if each.failure
    ]
    sentences = [*verdict.sentences(), *failed]
    label = metric_label(verdict.metric)
    figures = [_figure(slug, title, cost, shown, variants, verdict, label) for slug, title, cost, shown in COSTS]
    sections = [
        Section("recommended", "Recommended", "comparison/recommendation.jinja", sentences[1:] or sentences),
        Section(
            "fronts", "Quality and cost", "charts.jinja", figures, _LEAD.format(label=label, better=_better(verdict))
        ),
    ]
    return render_comparison_html(runs, sections, sentences[0])


_LEAD = (
    "Vertical: {label}, {better}. A ring marks what nothing else beats in both at once; the rest costs more for less."
)


def _better(verdict: Verdict) -> str:
    return "lower is better" if verdict.facts.better == "lower" else "higher is better"


def _figure(
    slug: str,
    title: str,
    cost: Cost,
    shown: Callable[[float], str],
    variants: Sequence[Variant],
    verdict: Verdict,
    label: str,
) -> Figure:
    front = pareto_front(variants, verdict.facts, {variant.name: cost(variant) for variant in variants})
    dots = [
        Dot(variant.name, run_style(index), cost(variant), variant.value, variant.name in front)
        for index, variant in enumerate(variants)
    ]
    return scatter(f"front-{slug}", f"{label[:1].upper()}{label[1:]} against {title.lower()}", dots, shown, title)
