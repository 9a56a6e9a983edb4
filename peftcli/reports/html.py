"""`report.html`: a run as one page that stands alone. No script, nothing fetched, nothing from data but text."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.ownership import HTML_MARK
from peftcli.reports.checks import run_checks
from peftcli.reports.folder import RunFacts
from peftcli.reports.markup import Child, Markup, tag
from peftcli.reports.sections.closing import history_section, reproduce_section
from peftcli.reports.sections.comparison import comparison_section
from peftcli.reports.sections.curves import curves_section
from peftcli.reports.sections.data import data_section
from peftcli.reports.sections.opening import masthead, verdict_section
from peftcli.reports.sections.resources import resources_section
from peftcli.reports.sections.samples import samples_section
from peftcli.reports.sections.updates import updates_section
from peftcli.reports.style import style_sheet
from peftcli.reports.verdict import judge
from peftcli.reports.visible import clipped

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MAX_BYTES = 2_000_000

_SECTIONS = (
    ("comparison", "Base and tuned", comparison_section),
    ("samples", "Samples", samples_section),
    ("curves", "Training", curves_section),
    ("data", "Data", data_section),
    ("updates", "What changed", updates_section),
    ("resources", "Resources", resources_section),
    ("history", "Warnings", history_section),
    ("reproduce", "Reproduce", reproduce_section),
)


def render_html(run: RunFacts) -> str:
    """The report of one run, below `MAX_BYTES` whatever the record holds."""
    checks = run_checks(run)
    sections = [(slug, title, body) for slug, title, build in _SECTIONS if (body := build(run)) is not None]
    footer = f"Made by peftcli {run.record.version} from run.json and metrics.jsonl of this run."
    return page(
        f"{clipped(run.name, 120)}, run report",
        masthead(run),
        [verdict_section(run, judge(run.record, checks), checks), contents([entry[:2] for entry in sections])],
        [body for _, _, body in sections],
        footer=clipped(footer, 200),
    )


def contents(entries: Sequence[tuple[str, str]]) -> Markup:
    """Links to the sections of the page."""
    items = [tag("li", tag("a", title, href=f"#{slug}")) for slug, title in entries]
    return tag("nav", tag("ul", items), class_="contents", aria_label="Sections")


def page(title: str, head: Child, opening: Sequence[Markup], sections: Sequence[Markup], *, footer: str) -> str:
    """A whole document around its parts."""
    metadata = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=CONTENT_SECURITY_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        Markup(HTML_MARK),
        tag("title", title),
        tag("style", Markup(style_sheet())),
    ]
    body = tag(
        "div",
        tag("a", "Skip to the sections", href="#sections", class_="skip"),
        head,
        tag("main", opening, tag("div", id="sections", tabindex="-1"), sections),
        tag("footer", footer),
        class_="page",
    )
    return f"<!DOCTYPE html>\n{tag('html', tag('head', metadata), tag('body', body), lang='en')}\n"
