"""Where the adapter changed the model: update norms by block and module, the largest ones, all of them."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.reports import numbers
from peftcli.reports.folder import RunFacts
from peftcli.reports.markup import Markup, tag
from peftcli.reports.plots.bars import Bar, bar_list
from peftcli.reports.plots.frame import figure
from peftcli.reports.plots.grid import Cell, cells, size, update_grid
from peftcli.reports.record import LayerUpdate
from peftcli.reports.sections.parts import amount, details, section, table
from peftcli.reports.visible import clipped

MAX_UPDATES = 400
_LARGEST = 8
_MAX_NAME = 80


def updates_section(run: RunFacts) -> Markup | None:
    """None when no update norms were recorded."""
    updates = run.record.updates
    if not updates:
        return None
    found = cells(updates[:MAX_UPDATES])
    pictures = [_grid(found) if len({cell.block for cell in found}) > 1 else None, _largest(updates)]
    return section(
        "updates",
        "What changed",
        tag("div", pictures, class_="charts"),
        details(f"All {len(updates):,} layers", _all(updates)),
        lead="Size of the weight change by layer; relative to the base weight where there is one.",
    )


def _grid(found: Sequence[Cell]) -> Markup:
    note = "Columns are blocks; the stronger the colour, the larger the change."
    return figure("By block and module", update_grid("update-grid", found), note=note, style="gutter")


def _largest(updates: Sequence[LayerUpdate]) -> Markup:
    top = sorted(updates, key=size, reverse=True)[:_LARGEST]
    bars = [Bar(_tail(update.name), size(update), _short(update)) for update in top]
    title = f"The {len(bars)} largest" if len(updates) > len(bars) else "By layer"
    description = "; ".join(f"{bar.name} {bar.text}" for bar in bars[:3])
    return figure(title, bar_list("largest-updates", title, description, bars), style="flush")


def _short(update: LayerUpdate) -> str:
    return numbers.percent(update.relative) if update.relative is not None else numbers.plain(update.norm, 3)


def _tail(name: str, limit: int = 40) -> str:
    """The end of a name, which is the part that differs."""
    return name if len(name) <= limit else f"…{name[-limit:]}"


def _all(updates: Sequence[LayerUpdate]) -> Markup:
    rows = [
        [clipped(update.name, _MAX_NAME), amount(update.norm, numbers.plain(update.norm, 4)), _relative(update)]
        for update in updates[:MAX_UPDATES]
    ]
    caption = "Update norms by layer"
    if len(updates) > MAX_UPDATES:
        caption += f" (the first {MAX_UPDATES}; all are in run.json)"
    return table(caption, ["Layer", "Norm", "Of the base weight"], rows, numeric=True)


def _relative(update: LayerUpdate) -> Markup:
    return amount(update.relative, numbers.percent(update.relative))
