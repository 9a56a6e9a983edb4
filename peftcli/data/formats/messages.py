"""`{"messages": [{"role": ..., "content": ...}, ...]}` (OpenAI), also with `tools` and tool calls.

Also `{"id": ..., "data": [question, answer, ...]}`, as UltraChat has them.
"""

from __future__ import annotations

from typing import Any

from peftcli.data.chat.messages import parse_messages, parse_tools, require_answer, turns_in
from peftcli.data.columns import Columns
from peftcli.data.faults import RowFault, listed
from peftcli.data.format import Format
from peftcli.data.rows import ChatRow


def recognise(row: Columns) -> str | None:
    """By a column `messages` that holds turns, as a list or as its JSON."""
    turns = row.get("messages")
    if _by_turns(row):
        return "a column `data` that holds texts by turns, as in UltraChat"
    if isinstance(turns, str) and turns.lstrip().startswith("[{"):
        return "a column `messages` that holds a list of turns as JSON text"
    if isinstance(turns, dict):
        turns = turns_in(turns)
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return "a column `messages` that holds a list of turns"
    return None


def _by_turns(row: Columns) -> bool:
    turns = row.get("data")
    return set(row) <= {"id", "data"} and isinstance(turns, list) and len(turns) > 1 and all(map(_is_text, turns))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def parse(row: Columns) -> ChatRow:
    """The conversation with its tools; `RowFault` where nobody answers."""
    if _by_turns(row):
        roles = ("user", "assistant")
        row = {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(row["data"])]}
    if "messages" not in row:
        raise RowFault(f"the column 'messages' is missing; columns present: {listed(row)}")
    messages, weights = parse_messages(row["messages"])
    require_answer(messages)
    return ChatRow(messages, weights, parse_tools(row.get("tools")))


FORMAT = Format(
    "messages",
    ("messages",),
    ("tools",),
    recognise,
    parse,
    rank=10,
    example='{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}',
    usual={"messages": ("conversation", "conversations", "dialog", "dialogue", "turns", "chat")},
    foreign_names=("chatml", "chat_template", "chat", "conversational", "openai"),
)
