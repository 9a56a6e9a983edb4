"""`peft report`: renders what a run folder holds again, or several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftcli.errors import Fault, PeftcliError
from peftcli.jobs.failures import find_failures
from peftcli.reports.writing import write_comparison, write_for_users, write_reports_again
from peftcli.runs.locating import recorded_run


def render_again(run: Path) -> list[Path]:
    """`report.html` and `report.md` of a run, from its record; `report-users.html` for those who use the model, and every
    figure as an SVG file. Raises what `recorded_run` raises."""
    folder = recorded_run(run)
    return [*write_reports_again(folder), *write_for_users(folder, find_failures(folder))]


def render_comparison(runs: Sequence[Path], folder: Path) -> list[Path]:
    """`compare.html` and `compare.md` in `folder`, of several runs. All folders that are no run are named in one error."""
    found: list[Path] = []
    errors: list[PeftcliError] = []
    for run in runs:
        try:
            found.append(recorded_run(run))
        except PeftcliError as error:
            errors.append(error)
    if errors:
        faults: list[Fault] = [fault for error in errors for fault in error.faults]
        raise type(errors[0])(f"{len(faults)} of {len(runs)} are no finished runs", faults=faults)
    return write_comparison(found, folder)
