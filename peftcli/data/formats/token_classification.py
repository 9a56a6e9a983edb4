"""`{"tokens": [...], "tags": [...]}`: words and one tag for each."""

from __future__ import annotations

from peftcli.data.columns import Columns
from peftcli.data.faults import RowFault
from peftcli.data.format import Format
from peftcli.data.readers.jsonl import json_kind
from peftcli.data.rows import TagRow


def recognise(row: Columns) -> str | None:
    """By its two required columns; tags may be called as in public sets, where they are the only ones."""
    if "tokens" not in row:
        return None
    if "tags" in row:
        return "columns `tokens` and `tags`"
    only = _only_tags(row)
    return None if only is None else f"columns `tokens` and `{only}`"


def _only_tags(row: Columns) -> str | None:
    found = [name for name in row if name.endswith(_PUBLIC) and isinstance(row[name], list)]
    return found[0] if len(found) == 1 else None


def parse(row: Columns) -> TagRow:
    """Words and as many tags."""
    tags_column = "tags" if "tags" in row else _only_tags(row) or "tags"
    words, tags = row.get("tokens"), row.get(tags_column)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise RowFault(f"'tokens' must be a list of words, not {json_kind(words)}")
    if not isinstance(tags, list) or not all(isinstance(tag, (str, int)) and tag is not True for tag in tags):
        raise RowFault(f"{tags_column!r} must be a list of names or numbers, not {json_kind(tags)}")
    if not words:
        raise RowFault("'tokens' is empty")
    if len(words) != len(tags):
        raise RowFault(f"{len(words)} words but {len(tags)} tags")
    return TagRow(tuple(words), tuple(tags))


_PUBLIC = "_tags"
"""What the names of tags end with in public sets: `ner_tags`, `pos_tags`, `chunk_tags`."""

FORMAT = Format(
    "token-classification",
    ("tokens", "tags"),
    (),
    recognise,
    parse,
    rank=50,
    example='{"tokens": ["Ada", "wrote"], "tags": ["B-PER", "O"]}',
    one_sequence=False,
    templated=False,
    usual={"tokens": ("words",), "tags": ("ner_tags", "labels", "pos_tags")},
)
