"""`{"text": ...}`: documents for plain language modelling."""

from __future__ import annotations

from peftcli.data.columns import Columns, text_part
from peftcli.data.format import Format
from peftcli.data.rows import TextRow


def recognise(row: Columns) -> str | None:
    """By a column `text` that is no message of a tree."""
    # a message of a conversation, one a row
    if "text" in row and not ("role" in row and ("parent_id" in row or "message_id" in row)):
        return "a column `text`"
    return None


def parse(row: Columns) -> TextRow:
    """The document, which may be empty: the doctor counts those."""
    return TextRow(text_part(row, "text"))


FORMAT = Format(
    "text",
    ("text",),
    (),
    recognise,
    parse,
    rank=90,
    example='{"text": "Once upon a time ..."}',
    usual={"text": ("content", "body", "document", "article", "story")},
    templated=False,
    foreign_names=("completion", "pretrain"),
)
