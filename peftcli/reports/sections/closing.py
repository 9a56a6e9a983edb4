"""The end of the page: warnings and events, settings, environment, plan, recipe."""

from __future__ import annotations

from peftcli.reports.folder import RunFacts
from peftcli.reports.markup import Child, Markup, tag
from peftcli.reports.sections.parts import details, facts_table, section, table
from peftcli.reports.visible import clipped

_MAX_WARNINGS = 50
_MAX_EVENTS = 100
_MAX_RECIPE = 40_000


def history_section(run: RunFacts) -> Markup | None:
    """Warnings and events; None for a run without either."""
    told = {finding.message for finding in run.findings}
    warnings = [text for text in run.record.warnings if text not in told]
    events = run.record.events
    if not warnings and not events:
        return None
    texts = [tag("li", clipped(text, 1000), dir="auto") for text in warnings[:_MAX_WARNINGS]]
    if len(warnings) > _MAX_WARNINGS:
        texts.append(tag("li", f"{len(warnings) - _MAX_WARNINGS} more are in run.json"))
    rows = [
        [clipped(event.event.replace("_", " "), 80), f"{event.step:,}", tag("span", clipped(event.message, 400))]
        for event in events[:_MAX_EVENTS]
    ]
    return section(
        "history",
        "Warnings",
        tag("ul", texts, class_="warnings") if texts else None,
        table("What happened on the way", ["Event", "Step", "Details"], rows) if rows else None,
    )


def reproduce_section(run: RunFacts) -> Markup:
    """All that someone needs to run it again."""
    record = run.record
    tables: list[Child] = [
        facts_table("Resolved settings", record.settings),
        facts_table(
            "Environment",
            {**({"peftcli": record.version} if record.version else {}), **record.environment},
        ),
    ]
    plan = facts_table("Plan", record.plan)
    return section(
        "reproduce",
        "Reproduce",
        tag("div", tables, class_="pair") if any(tables) else None,
        details("The plan", plan) if plan else None,
        _recipe(run.recipe),
        lead="Settings, environment and recipe of this run.",
    )


def _recipe(recipe: str) -> Markup | None:
    if not recipe.strip():
        return None
    return tag("div", tag("h3", "Recipe"), tag("pre", tag("code", clipped(recipe, _MAX_RECIPE)), tabindex="0"))
