"""`{"messages": [{"role": ..., "content": ...}, ...]}` (OpenAI), also with `tools` and tool calls."""

from __future__ import annotations

from peftcli.data.chat.messages import parse_messages, parse_tools, require_answer, turns_in
from peftcli.data.columns import Columns
from peftcli.data.faults import RowFault, listed
from peftcli.data.format import Format
from peftcli.data.rows import ChatRow


def recognise(row: Columns) -> str | None:
    """By a column `messages` that holds turns, as a list or as its JSON."""
    turns = row.get("messages")
    if isinstance(turns, str) and turns.lstrip().startswith("[{"):
        return "a column `messages` that holds a list of turns as JSON text"
    if isinstance(turns, dict):
        turns = turns_in(turns)
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return "a column `messages` that holds a list of turns"
    return None


def parse(row: Columns) -> ChatRow:
    """The conversation with its tools; `RowFault` where nobody answers."""
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
