"""`{"prompt": ..., "completion": ...}`: texts, or lists of messages on both sides."""

from __future__ import annotations

from peftcli.data.chat.messages import parse_messages, parse_tools
from peftcli.data.faults import RowFault
from peftcli.data.format import Columns, Format, filled_text, text_part
from peftcli.data.rows import ChatRow, Piece, PiecesRow


def recognise(row: Columns) -> str | None:
    return "columns `prompt` and `completion`" if "prompt" in row and "completion" in row else None


def parse(row: Columns) -> PiecesRow | ChatRow:
    if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        return _conversation(row)
    return PiecesRow((Piece(text_part(row, "prompt"), None), Piece(filled_text(row, "completion"), 1.0)))


def _conversation(row: Columns) -> ChatRow:
    before, _ = parse_messages(row["prompt"])
    context: list[float | None] = [0.0] * len(before)
    answer, weights = parse_messages(row["completion"])
    if not any(message["role"] == "assistant" for message in answer):
        raise RowFault("the completion has no assistant message")
    # the answers of the prompt are context, whatever `train_on` says
    return ChatRow([*before, *answer], context + weights, parse_tools(row.get("tools")))


FORMAT = Format(
    "prompt-completion",
    ("prompt", "completion"),
    ("tools",),
    recognise,
    parse,
    rank=40,
    example='{"prompt": "2 + 2 =", "completion": " 4"}',
)
