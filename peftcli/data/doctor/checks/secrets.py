"""Strings of the shape of credentials: a model may repeat them. They are named by kind, never quoted."""

from __future__ import annotations

from collections.abc import Iterable

from peftcli.data.doctor.base import Check, RowBatch
from peftcli.redaction.shapes import SHAPES


def scan(batch: RowBatch) -> Iterable[tuple[int, str]]:
    """A hit for every row with something of the shape of a credential, by its kind."""
    possible = [shape for shape in SHAPES if shape.may_be_in(batch.joined)]
    for position, text in enumerate(batch.texts) if possible else ():
        found = next((shape for shape in possible if shape.is_in(text)), None)
        if found is not None:
            yield position, f"the text holds {found.kind}"


CHECK = Check("warn", "strings of the shape of credentials", scan=scan)
