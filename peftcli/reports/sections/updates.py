"""Where the adapter changed the model: update norms by block and module, the largest ones, all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peftcli.reports import numbers
from peftcli.reports.folder import RunFacts
from peftcli.reports.plots.bars import Bar, bar_list
from peftcli.reports.plots.frame import Figure
from peftcli.reports.plots.grid import Cell, cells, size, update_grid
from peftcli.reports.record import LayerUpdate
from peftcli.reports.sections.parts import Amount, Section
from peftcli.reports.visible import clipped

MAX_UPDATES = 400
_LARGEST = 8
_MAX_NAME = 80


@dataclass(frozen=True)
class LayerRow:
    """The change of one layer, and its share of the base weight."""

    name: str
    norm: Amount
    relative: Amount


@dataclass(frozen=True)
class Updates:
    """Pictures of the changes, then a fold with all of them. `title`: of the fold, `caption`: of its table."""

    pictures: list[Figure]
    title: str
    caption: str
    layers: list[LayerRow]


def updates_section(run: RunFacts) -> Section | None:
    """None when no update norms were recorded."""
    updates = run.record.updates
    if not updates:
        return None
    placed = cells(updates[:MAX_UPDATES])
    # one block alone makes no grid
    pictures = [_grid(placed)] if len({cell.block for cell in placed}) > 1 else []
    facts = Updates(
        [*pictures, _largest(updates)],
        f"All {len(updates):,} layers",
        _caption(updates),
        [_row(update) for update in updates[:MAX_UPDATES]],
    )
    lead = "Size of the weight change by layer; relative to the base weight where there is one."
    return Section("updates", "What changed", "report/updates.jinja", facts, lead)


def _grid(placed: Sequence[Cell]) -> Figure:
    note = "Columns are blocks; the stronger the colour, the larger the change."
    return Figure("By block and module", update_grid("update-grid", placed), note=note, style="gutter")


def _largest(updates: Sequence[LayerUpdate]) -> Figure:
    top = sorted(updates, key=size, reverse=True)[:_LARGEST]
    bars = [Bar(_tail(update.name), size(update), _short(update)) for update in top]
    title = f"The {len(bars)} largest" if len(updates) > len(bars) else "By layer"
    description = "; ".join(f"{bar.name} {bar.text}" for bar in bars[:3])
    return Figure(title, bar_list("largest-updates", title, description, bars), style="flush")


def _short(update: LayerUpdate) -> str:
    return numbers.percent(update.relative) if update.relative is not None else numbers.plain(update.norm, 3)


def _tail(name: str, limit: int = 40) -> str:
    """The end of a name, which is the part that differs."""
    return name if len(name) <= limit else f"…{name[-limit:]}"


def _caption(updates: Sequence[LayerUpdate]) -> str:
    left = f" (the first {MAX_UPDATES}; all are in run.json)" if len(updates) > MAX_UPDATES else ""
    return f"Update norms by layer{left}"


def _row(update: LayerUpdate) -> LayerRow:
    return LayerRow(
        clipped(update.name, _MAX_NAME),
        Amount(update.norm, numbers.plain(update.norm, 4)),
        Amount(update.relative, numbers.percent(update.relative)),
    )
