"""`report.html`: a run as one page that stands alone. No script, nothing fetched, nothing from data but text."""

from __future__ import annotations

from collections.abc import Callable

from peftcli.reports.checks import run_checks
from peftcli.reports.folder import RunFacts
from peftcli.reports.sections.closing import history_section, reproduce_section
from peftcli.reports.sections.comparison import comparison_section
from peftcli.reports.sections.curves import curves_section
from peftcli.reports.sections.data import data_section
from peftcli.reports.sections.opening import masthead, opening
from peftcli.reports.sections.parts import Section
from peftcli.reports.sections.resources import resources_section
from peftcli.reports.sections.samples import samples_section
from peftcli.reports.sections.updates import updates_section
from peftcli.reports.templating import render
from peftcli.reports.verdict import judge
from peftcli.reports.visible import clipped

# what a browser opens and a mail takes
MAX_BYTES = 2_000_000

_SECTIONS: tuple[Callable[[RunFacts], Section | None], ...] = (
    comparison_section,
    samples_section,
    curves_section,
    data_section,
    updates_section,
    resources_section,
    history_section,
    reproduce_section,
)


def render_html(run: RunFacts) -> str:
    """The report of one run, below `MAX_BYTES` whatever the record holds."""
    checks = run_checks(run)
    footer = f"Made by peftcli {run.record.version} from run.json and metrics.jsonl of this run."
    return render(
        "report.jinja",
        title=clipped(run.name, 120),
        masthead=masthead(run),
        verdict=opening(run, judge(run.record, checks), checks),
        sections=[section for build in _SECTIONS if (section := build(run)) is not None],
        footer=clipped(footer, 200),
    )
