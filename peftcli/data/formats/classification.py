"""`{"text": ..., "label": ...}`: a text, perhaps a second one, and its label (or a list of labels)."""

from __future__ import annotations

import math
from typing import Any

from peftcli.data.columns import Columns, filled_text, optional_text
from peftcli.data.faults import RowFault
from peftcli.data.format import Format
from peftcli.data.readers.jsonl import json_kind
from peftcli.data.rows import Label, LabelRow

_GLUE = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("sentence", None),
)
"""The columns of GLUE and sets like it: text and second text."""


def recognise(row: Columns) -> str | None:
    """By a label beside a text, or beside the texts of a GLUE task."""
    label = next((name for name in _LABELS if name in row), None)
    if label is None:
        return None
    if "text" in row:
        return f"columns `text` and `{label}`"
    if (named := _as_in_glue(row)) is not None and label == "label":
        return f"columns {', '.join(f'`{name}`' for name in named if name)} and `label`, as in GLUE"
    return None


def _as_in_glue(row: Columns) -> tuple[str, str | None] | None:
    """The columns of the two texts, where they are called as in GLUE; the row then has no other text."""
    return next((names for names in _GLUE if all(name is None or name in row for name in names)), None)


def parse(row: Columns) -> LabelRow:
    """The text, or the two, with its labels. Raises `RowFault` for a label that is none."""
    if "text" not in row and (named := _as_in_glue(row)) is not None:
        first, second = named
        if row.get("label") == _HELD_BACK and not isinstance(row["label"], str):
            raise RowFault(
                "'label' is -1, which sets of this kind have where a label is held back (their test split) or missing",
                "remove the row; or train on another split",
            )
        row = {**row, "text": row[first], **({} if second is None else {"text_pair": row[second]})}
    value = row.get("label", row.get("labels"))
    labels = tuple(_label(each) for each in value) if isinstance(value, list) else (_label(value),)
    # an empty second text is none
    return LabelRow(filled_text(row, "text"), optional_text(row, "text_pair") or None, labels)


_LABELS = ("label", "labels")
_HELD_BACK = -1


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
    templated=False,
    usual={
        "text": ("sentence", "sentence1", "premise", "review", "content", "question1"),
        "text_pair": ("sentence2", "hypothesis", "question2"),
        "label": ("labels", "sentiment", "class", "category"),
    },
)
