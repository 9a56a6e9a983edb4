"""Rows as people read them: pieces of text, each trained, context or special."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from peftcli.data.store import Encoded


@dataclass(frozen=True)
class TextSpan:
    text: str
    kind: Literal["trained", "context", "special"]


def row_spans(row: Encoded, tokenizer: Any) -> list[TextSpan]:
    """The row's tokens decoded, joined while they are of one kind."""
    special = set(tokenizer.all_special_ids)
    spans: list[TextSpan] = []
    ids: list[int] = []
    kind: Literal["trained", "context", "special"] | None = None

    def close() -> None:
        if ids and kind:
            spans.append(TextSpan(tokenizer.decode(ids), kind))
            ids.clear()

    for token, weight in zip(row.input_ids.tolist(), row.weights.tolist(), strict=True):
        own: Literal["trained", "context", "special"] = (
            "special" if token in special else "trained" if weight > 0 else "context"
        )
        if own != kind:
            close()
            kind = own
        ids.append(token)
    close()
    return spans
