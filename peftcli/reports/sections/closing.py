"""The end of the page: warnings and events, settings, environment, plan, recipe."""

from __future__ import annotations

from dataclasses import dataclass

from peftcli.reports.folder import RunFacts
from peftcli.reports.sections.parts import FactsTable, Section, facts_table
from peftcli.reports.visible import clipped

_MAX_WARNINGS = 50
_MAX_EVENTS = 100
_MAX_RECIPE = 40_000


@dataclass(frozen=True)
class History:
    """Warnings, and events with step and details."""

    warnings: list[str]
    more_warnings: int
    events: list[tuple[str, str, str]]
    more_events: int


@dataclass(frozen=True)
class RunAgain:
    """All that someone needs to run it again."""

    tables: list[FactsTable]
    plan: FactsTable | None
    recipe: str


def history_section(run: RunFacts) -> Section | None:
    """Warnings and events; None for a run without either."""
    # findings stand in the data section, with their rows
    told = {finding.message for finding in run.findings}
    warnings = [text for text in run.record.warnings if text not in told]
    events = run.record.events
    if not warnings and not events:
        return None
    facts = History(
        [clipped(text, 1000) for text in warnings[:_MAX_WARNINGS]],
        max(0, len(warnings) - _MAX_WARNINGS),
        [
            (clipped(event.event.replace("_", " "), 80), f"{event.step:,}", clipped(event.message, 400))
            for event in events[:_MAX_EVENTS]
        ],
        max(0, len(events) - _MAX_EVENTS),
    )
    return Section("history", "Warnings", "report/history.jinja", facts)


def reproduce_section(run: RunFacts) -> Section:
    """Always there: every run has at least a recipe or settings."""
    record = run.record
    version = {"peftcli": record.version} if record.version else {}
    tables = [
        facts_table("Resolved settings", record.settings),
        facts_table("Environment", {**version, **record.environment}),
    ]
    facts = RunAgain(
        [table for table in tables if table is not None],
        facts_table("Plan", record.plan),
        clipped(run.recipe, _MAX_RECIPE) if run.recipe.strip() else "",
    )
    lead = "Settings, environment and recipe of this run."
    return Section("reproduce", "Reproduce", "report/reproduce.jinja", facts, lead)
