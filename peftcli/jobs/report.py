"""`peft report`: renders what a run folder holds again, or several runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftcli.reports.writing import write_comparison, write_reports_again


def render_again(run: Path) -> list[Path]:
    """`report.html` and `report.md` of a run, from its record."""
    return write_reports_again(run)


def render_comparison(runs: Sequence[Path], folder: Path) -> list[Path]:
    """`compare.html` and `compare.md` in `folder`, of several runs."""
    return write_comparison(list(runs), folder)
