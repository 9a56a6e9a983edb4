"""Scores of several runs on parts of the rows: a table, a column for each class or source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peftcli.reports import numbers
from peftcli.reports.sections.parts import Amount, bound
from peftcli.reports.visible import clipped

_MAX_NAME = 40


@dataclass(frozen=True)
class PartColumn:
    """A class or source, and how many rows or words it has."""

    name: str
    count: int


@dataclass(frozen=True)
class PartRow:
    """The scores of one run, in the order of the columns; None where nothing was measured."""

    style: str
    name: str
    values: list[float | None]


@dataclass(frozen=True)
class PartCell:
    """A number, and whether it is the best of its column."""

    number: Amount
    is_best: bool


@dataclass(frozen=True)
class ShownRow:
    """A run as the template lays it out."""

    style: str
    name: str
    cells: list[PartCell]


@dataclass(frozen=True)
class RowPartsTable:
    """What the template needs."""

    caption: str
    heads: list[str]
    runs: list[ShownRow]

    @classmethod
    def of(
        cls, caption: str, columns: list[PartColumn], rows: list[PartRow], shown: Callable[[float], str], higher: bool
    ) -> RowPartsTable:
        """`shown` writes a number; `higher`: whether more is better."""
        best = [_best([row.values[at] for row in rows], higher) for at in range(len(columns))]
        heads = [f"{clipped(column.name, _MAX_NAME)} ({numbers.count(column.count)})" for column in columns]
        runs = [
            ShownRow(
                row.style, row.name, [_cell(value, top, shown) for value, top in zip(row.values, best, strict=True)]
            )
            for row in rows
        ]
        return cls(caption, heads, runs)


def _best(values: list[float | None], higher: bool) -> float | None:
    known = [value for value in values if value is not None]
    return (max if higher else min)(known) if known else None


def _cell(value: float | None, best: float | None, shown: Callable[[float], str]) -> PartCell:
    text = numbers.MISSING if value is None else bound(shown(value))
    return PartCell(Amount(value, text), value is not None and value == best)
