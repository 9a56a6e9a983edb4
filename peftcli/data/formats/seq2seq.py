"""`{"source": ..., "target": ...}`: what is read and what is to be written."""

from __future__ import annotations

from peftcli.data.columns import Columns, filled_text
from peftcli.data.format import Format
from peftcli.data.rows import PairRow


def recognise(row: Columns) -> str | None:
    """By its two required columns."""
    return "columns `source` and `target`" if "source" in row and "target" in row else None


def parse(row: Columns) -> PairRow:
    """Source and target, both with something in them."""
    return PairRow(filled_text(row, "source"), filled_text(row, "target"))


FORMAT = Format(
    "seq2seq",
    ("source", "target"),
    (),
    recognise,
    parse,
    rank=55,
    example='{"source": "translate to French: cat", "target": "chat"}',
    one_sequence=False,
    templated=False,
    usual={"source": ("src", "document", "article"), "target": ("tgt", "summary", "highlights")},
)
