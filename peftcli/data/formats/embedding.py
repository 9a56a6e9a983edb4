"""`{"anchor": ..., "positive": ..., "negative": ...}`: texts that belong together and texts that do
not; or two texts and how alike they are.

Columns as sentence-transformers and MS MARCO have them: `anchor` or `query`; `positive`; none, one or several negatives as
`negative`, `negative_1`, ... or `negatives`. Scored pairs: `sentence1`, `sentence2`, `score`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from peftcli.data.columns import Columns, filled_text
from peftcli.data.faults import RowFault
from peftcli.data.format import Format
from peftcli.data.readers.jsonl import json_kind
from peftcli.data.rows import ContrastRow

_ANCHORS = ("anchor", "query")
_NUMBERED = re.compile(r"negative_\d+")
_SCORED = ("sentence1", "sentence2", "score")


def recognise(row: Columns) -> str | None:
    """By an anchor with its match, or by two sentences and a score."""
    anchor = _anchor(row)
    if anchor and "positive" in row:
        return f"columns `{anchor}` and `positive`"
    if all(name in row for name in _SCORED):
        return "columns `sentence1`, `sentence2` and `score`"
    return None


def _anchor(row: Columns) -> str | None:
    return next((name for name in _ANCHORS if name in row), None)


def parse(row: Columns) -> ContrastRow:
    """Anchor, match and what is none; or two texts with their score."""
    anchor = _anchor(row)
    if anchor is None and "sentence1" in row:
        return ContrastRow((filled_text(row, "sentence1"), filled_text(row, "sentence2")), _score(row))
    texts = (filled_text(row, anchor or "anchor"), filled_text(row, "positive"), *_negatives(row))
    if texts[1] in texts[2:]:
        raise RowFault("a negative is the same text as 'positive'")
    return ContrastRow(texts)


def _negatives(row: Columns) -> Iterator[str]:
    for name in [name for name in row if name in ("negative", "negatives") or _NUMBERED.fullmatch(name)]:
        value = row[name]
        if isinstance(value, list):
            yield from (filled_text({name: each}, name) for each in value)
        # sets with a fixed number of columns leave those empty that a row has no negative for
        elif value is not None and value != "":
            yield filled_text(row, name)


def _score(row: Columns) -> float:
    if "score" not in row:
        raise RowFault("the column 'score' is missing: two sentences need it", "name it in `columns`, or add it")
    value = row["score"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RowFault(f"'score' is {json_kind(value)}, not a number")
    if not -1 <= value <= 1:
        raise RowFault(
            f"'score' is {value:g}: a cosine lies between -1 and 1", "divide the scores by the highest there can be"
        )
    return float(value)


FORMAT = Format(
    "embedding",
    (),
    (*_ANCHORS, "positive", "negative", "negatives", *_SCORED),
    recognise,
    parse,
    rank=50,
    example='{"anchor": "Where is my card?", "positive": "Track the delivery of a card", "negative": "Close an account"}',
    one_sequence=False,
    templated=False,
    usual={"anchor": ("question", "sentence", "title"), "positive": ("answer", "pos", "passage", "document")},
)
