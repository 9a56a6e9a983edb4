"""`{"text": ..., "label": ...}`: a text, perhaps a second one, and its label (or a list of labels)."""

from __future__ import annotations

import math
from typing import Any

from peftcli.data.columns import Columns, filled_text, optional_text
from peftcli.data.faults import RowFault
from peftcli.data.format import Format
from peftcli.data.readers.jsonl import json_kind
from peftcli.data.rows import Label, LabelRow


def recognise(row: Columns) -> str | None:
    return "columns `text` and `label`" if "text" in row and "label" in row else None


def parse(row: Columns) -> LabelRow:
    value = row.get("label")
    labels = tuple(_label(each) for each in value) if isinstance(value, list) else (_label(value),)
    return LabelRow(filled_text(row, "text"), optional_text(row, "text_pair") or None, labels)


def _label(value: Any) -> Label:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise RowFault(f"'label' is {value}, which cannot be learned")
    if isinstance(value, (int, float)) or (isinstance(value, str) and value.strip()):
        return value
    raise RowFault(f"'label' is {json_kind(value) if value != '' else 'empty'}, not a name or a number")


FORMAT = Format(
    "classification",
    ("text", "label"),
    ("text_pair",),
    recognise,
    parse,
    rank=60,
    example='{"text": "Where is my card?", "label": "card_arrival"}',
    one_sequence=False,
    usual={
        "text": ("sentence", "sentence1", "premise", "review", "content", "question1"),
        "text_pair": ("sentence2", "hypothesis", "question2"),
        "label": ("labels", "sentiment", "class", "category"),
    },
)
