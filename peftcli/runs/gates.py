"""The gates of a recipe's `expect`, held against what a run measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from peftcli.errors import CheckFailed
from peftcli.recipe import parse_gate
from peftcli.reports.record import ExpectResult, RunRecord
from peftcli.reports.tables import text_table


def gate_results(
    expect: Mapping[str, str], base: Mapping[str, float | None], tuned: Mapping[str, float | None]
) -> list[ExpectResult]:
    """Each gate with the tuned model's metric; one that was not measured is not met."""
    found = []
    for metric, wanted in expect.items():
        value = tuned.get(metric)
        held = value is not None and parse_gate(wanted).holds(value, base.get(metric))
        found.append(ExpectResult(metric=metric, wanted=wanted, found=value, held=held))
    return found


def gate_table(results: Sequence[ExpectResult], base: Mapping[str, float | None]) -> str:
    """Every gate in a table."""
    rows = [
        [gate.metric, gate.wanted, _shown(base.get(gate.metric)), _shown(gate.found), "yes" if gate.held else "NO"]
        for gate in results
    ]
    return text_table(["metric", "wanted", "base", "found", "met"], rows, numeric=(2, 3))


def _shown(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.6g}"


def unmet(record: RunRecord, folder: Path) -> CheckFailed | None:
    """The error of a run that does not keep its recipe's word; None where every gate is met."""
    missed = [gate for gate in record.expect if not gate.held]
    if not missed:
        return None
    count = len(record.expect)
    return CheckFailed(
        f"{len(missed)} of {count} expectation{'s' if count > 1 else ''} of the recipe not met\n"
        + gate_table(record.expect, record.evaluation.base),
        where=str(folder),
        fix="the run is complete; its report shows what it learned",
    )


def require_met(record: RunRecord, folder: Path) -> None:
    """Raises `CheckFailed` with the table when a gate is not met."""
    error = unmet(record, folder)
    if error is not None:
        raise error
