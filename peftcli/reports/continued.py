"""The adapter that a run went on from, in words."""

from __future__ import annotations

from peftcli.reports import numbers
from peftcli.reports.record import RunRecord
from peftcli.reports.scores import LOSS
from peftcli.reports.visible import short_path


def continued_from(record: RunRecord) -> str:
    """Its name and what it scored before the first step; empty where the method started anew."""
    if record.start is None:
        return ""
    loss = record.start.evaluation.get(LOSS)
    scored = "" if loss is None else f", evaluation loss {numbers.plain(loss)} before the first step"
    return f"{short_path(record.start.name)}{scored}"
