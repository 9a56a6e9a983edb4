"""Conversations whose turns do not follow each other as templates and bases expect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from peftcli.data.doctor.base import Check, RowBatch
from peftcli.data.rows import ChatRow, Message


def scan(batch: RowBatch) -> Iterable[tuple[int, str]]:
    """A hit for every conversation whose roles are out of order."""
    for position, row in enumerate(batch.rows):
        if isinstance(row, ChatRow) and (reason := order_fault(row.messages)):
            yield position, reason


def order_fault(messages: Sequence[Message]) -> str | None:
    """What is wrong with the order of roles: a system turn only in front, then user and assistant by turns, with tool
    turns only after an assistant's tool call; None when nothing is."""
    before = "start"
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if role in ("system", "developer"):
            if before not in ("start", "system"):
                return f"message {number} is a system turn after the conversation began"
            # several system turns in front are one beginning
            before = "system"
            continue
        if role not in _FOLLOWS[before]:
            return f"message {number} ({role}) follows {_NAMES[before]}"
        before = "call" if "tool_calls" in message else role
    return None


_FOLLOWS = {
    "start": ("user",),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool",),
    "tool": ("tool", "assistant"),
}
_NAMES = {
    "start": "nothing",
    "system": "the system turn",
    "user": "a user turn",
    "assistant": "an assistant turn",
    "call": "a tool call",
    "tool": "a tool turn",
}

CHECK = Check("fail", "turns out of order", scan=scan)
