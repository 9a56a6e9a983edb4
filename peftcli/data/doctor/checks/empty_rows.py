"""Documents without text. They are left out and counted; empty prompts and answers are errors of their format."""

from __future__ import annotations

from collections.abc import Iterable

from peftcli.data.doctor.base import Check, RowBatch
from peftcli.data.rows import TextRow


def scan(batch: RowBatch) -> Iterable[tuple[int, str]]:
    """A hit for every document of nothing, or of white space."""
    for position, row in enumerate(batch.rows):
        if isinstance(row, TextRow) and (not row.text or row.text.isspace()):
            yield position, "a document without text, left out"


CHECK = Check("warn", "documents without text", scan=scan)
