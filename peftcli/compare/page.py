"""`report.html` of a comparison: what is recommended, quality and cost, what being wrong costs, the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from peftcli.compare.figures import Variant
from peftcli.compare.judging import Verdict
from peftcli.compare.row_parts import class_section, source_section
from peftcli.compare.session import Ended
from peftcli.reports import numbers
from peftcli.reports.compare_html import render_comparison_html
from peftcli.reports.folder import read_run
from peftcli.reports.fronts import Standing, fronts_section
from peftcli.reports.plots.intervals import Lane, interval_chart
from peftcli.reports.scores import metric_label
from peftcli.reports.sections.parts import Section
from peftcli.reports.style import run_style


def render_page(ended: Sequence[Ended], variants: Sequence[Variant], verdict: Verdict) -> str:
    """The page, of every member that came to its end."""
    trained = [each for each in ended if each.record is not None]
    failed = [f"{each.member.title} failed: {each.failure}." for each in ended if each.failure]
    names = list(dict.fromkeys(each.member.name for each in ended))
    # the seeds of a name are drawn alike, here and in the curves
    styles = {name: run_style(number) for number, name in enumerate(names)}
    sentences = [*verdict.sentences(), *failed]
    label = metric_label(verdict.metric)
    sections = [
        Section("recommended", "Recommended", "comparison/recommendation.jinja", sentences[1:] or sentences),
        fronts_section([_standing(variant, styles) for variant in variants], verdict.facts, label),
        _cost_of_being_wrong(verdict, styles, label),
        class_section(variants, styles),
        source_section(variants, styles, verdict.metric, verdict.facts),
    ]
    return render_comparison_html(
        [read_run(each.run) for each in trained],
        [section for section in sections if section is not None],
        sentences[0],
        [styles[each.member.name] for each in trained],
    )


def _standing(variant: Variant, styles: Mapping[str, str]) -> Standing:
    return Standing(
        name=variant.name,
        style=styles[variant.name],
        value=variant.value,
        memory=float(variant.peak_memory_bytes),
        seconds=variant.seconds,
        trained=float(variant.trainable),
    )


def _cost_of_being_wrong(verdict: Verdict, styles: Mapping[str, str], label: str) -> Section | None:
    """What each other choice loses to the best, in pairs; None where nothing was compared row by row."""
    sign = 1.0 if verdict.facts.better == "lower" else -1.0
    lanes = []
    for other, found in verdict.others:
        if found is not None:
            low, high = sorted((sign * found.lo, sign * found.hi))
            lanes.append(Lane(other.name, styles[other.name], sign * found.delta, low, high))
    if not lanes:
        return None
    title = f"Lost against {verdict.best.name}"
    note = f"{label}; 95 % intervals, rows in pairs"
    shown = partial(numbers.metric_value, verdict.facts)
    lead = (
        "What it costs to take another one. An interval that holds zero may as well be no loss; where it begins below, the "
        "recommended one may be the wrong one, by that much."
    )
    chart = interval_chart("wrong-intervals", title, lanes, shown, note)
    return Section("wrong", "The cost of being wrong", "charts.jinja", [chart], lead)
