"""What the members measured: one line each for files, and one variant for all seeds of a name."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peftcli.compare.session import Ended
from peftcli.errors import DataError
from peftcli.evaluation.result import Difference, Table, difference
from peftcli.reports.metric_facts import MetricFacts
from peftcli.reports.record import RunRecord
from peftcli.runs.row_scores import read_row_scores


@dataclass(frozen=True)
class Variant:
    """All seeds of one name. Costs are means over them, the peak is the highest."""

    name: str
    method: str
    members: tuple[Ended, ...]
    value: float
    """The headline metric, mean over seeds."""
    low: float
    high: float
    """95 %, over rows; of several seeds the rows' numbers are added up first."""
    table: Table | None
    """The rows' numbers, added up over seeds."""
    trainable: int
    adapter_bytes: int
    peak_memory_bytes: int
    seconds: float

    @property
    def records(self) -> list[RunRecord]:
        """The records of its members that ended well."""
        return [ended.record for ended in self.members if ended.record is not None]


def member_line(ended: Ended, folder: Path) -> dict[str, Any]:
    """One member as `compare.json` has it; figures are None for one that failed."""
    record, member = ended.record, ended.member
    evaluation = None if record is None else {side: scores_of(ended, side) for side in SIDES}
    return {
        "name": member.name,
        "method": member.method,
        "vary": dict(member.vary),
        "seed": member.seed,
        "run": str(ended.run.relative_to(folder)),
        "learning_rate": record.learning_rate if record else None,
        "steps": record.steps if record else None,
        "tokens": record.tokens if record else None,
        "trainable": record.parameters.trainable if record else None,
        "adapter_bytes": record.adapter_bytes if record else None,
        "peak_memory_bytes": record.peak_memory_bytes if record else None,
        "seconds": record.seconds.training if record else None,
        "evaluation": evaluation,
        **({"failure": ended.failure} if ended.failure else {}),
    }


SIDES = ("base", "tuned")


def tables_of(ended: Ended, side: str) -> dict[str, Table]:
    """The rows' numbers by metric, `base` or `tuned`, of the rows that score the member."""
    found = read_row_scores(ended.run, side)
    return found if ended.final is None else {name: table.take(ended.final) for name, table in found.items()}


def scores_of(ended: Ended, side: str) -> dict[str, float | None]:
    """The metrics of a member that came to its end: those of its record, or of the rows that tuning has not seen."""
    if ended.final is not None:
        return {name: table.value() for name, table in tables_of(ended, side).items()}
    assert ended.record is not None, "a member that failed has no scores"
    return dict(ended.record.evaluation.base if side == "base" else ended.record.evaluation.tuned)


def variants_of(ended: Sequence[Ended], metric: str) -> list[Variant]:
    """One for each name whose seeds all came to their end, in the order of the members.

    Raises `DataError` where the members were scored on different rows, or not at all.
    """
    by_name: dict[str, list[Ended]] = {}
    for each in ended:
        by_name.setdefault(each.member.name, []).append(each)
    whole = {name: group for name, group in by_name.items() if all(each.record is not None for each in group)}
    return [_variant(name, group, metric) for name, group in whole.items()]


def _variant(name: str, group: Sequence[Ended], metric: str) -> Variant:
    records = [each.record for each in group if each.record is not None]
    scored = (scores_of(each, "tuned").get(metric) for each in group)
    values = [value for value in scored if value is not None]
    if len(values) < len(records):
        raise DataError(
            f"the members were not scored by {metric}", fix="give the recipe validation rows (`data.validation`)"
        )
    table = _added([tables_of(each, "tuned").get(metric) for each in group])
    # without rows the seeds are all that is known of the spread
    low, high = table.interval() if table is not None else (min(values), max(values))
    return Variant(
        name=name,
        method=group[0].member.method,
        members=tuple(group),
        value=statistics.fmean(values),
        low=low,
        high=high,
        table=table,
        trainable=round(statistics.fmean(record.parameters.trainable for record in records)),
        adapter_bytes=round(statistics.fmean(record.adapter_bytes for record in records)),
        # the highest: a mean over seeds would promise a device that one of them did not fit
        peak_memory_bytes=max(record.peak_memory_bytes for record in records),
        seconds=statistics.fmean(record.seconds.training for record in records),
    )


def _added(tables: Sequence[Table | None]) -> Table | None:
    known = [table for table in tables if table is not None]
    if len(known) < len(tables) or len({len(table.numbers) for table in known}) != 1:
        return None
    # additive numbers: the sum over seeds scores each row as the mean of its seeds does
    return Table(known[0].metric, np.sum([table.numbers for table in known], axis=0), known[0].sources)


def against(best: Variant, other: Variant) -> Difference | None:
    """`other` minus `best` on the same rows, in pairs; None where rows were not kept or are not the same."""
    one, two = best.table, other.table
    if one is None or two is None or len(one.numbers) != len(two.numbers):
        return None
    return difference(one, two)


def best_of(variants: Sequence[Variant], facts: MetricFacts) -> Variant:
    """The best by the headline metric; of equal ones the one with fewer trained parameters."""
    sign = 1.0 if facts.better == "lower" else -1.0
    return min(variants, key=lambda variant: (sign * variant.value, variant.trainable))
