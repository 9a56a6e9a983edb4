"""`{"conversations": [{"from": "human", "value": ...}, ...]}`, also with function calls and observations."""

from __future__ import annotations

import json
from typing import Any

from peftcli.data.chat.messages import parse_messages, parse_tools, require_answer
from peftcli.data.faults import RowFault, excerpt
from peftcli.data.format import Columns, Format, optional_text
from peftcli.data.names import nearest
from peftcli.data.readers.jsonl import json_kind
from peftcli.data.rows import ChatRow

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "function_call": "call",
    "tool_call": "call",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool": "tool",
}


def recognise(row: Columns) -> str | None:
    turns = row.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return "a column `conversations` that holds a list of turns"
    return None


def parse(row: Columns) -> ChatRow:
    turns = row.get("conversations")
    if not isinstance(turns, list):
        raise RowFault(f"'conversations' is {json_kind(turns)}, not a list of turns")
    converted = [message_of(turn, number) for number, turn in enumerate(turns, 1)]
    system = optional_text(row, "system")
    if system:
        converted.insert(0, {"role": "system", "content": system})
    messages, weights = parse_messages(converted)
    require_answer(messages)
    return ChatRow(messages, weights, parse_tools(row.get("tools")))


def message_of(turn: Any, number: int) -> dict[str, Any]:
    """One turn under OpenAI's names; a turn that has them already stays as it is. Raises `RowFault`."""
    if not isinstance(turn, dict):
        raise RowFault(f"turn {number} is {json_kind(turn)}, not an object with from and value")
    speaker = turn.get("from")
    if speaker is None and "role" in turn:
        return turn
    if not isinstance(speaker, str):
        raise RowFault(f"turn {number} has no 'from'; its keys: {', '.join(map(str, turn))}")
    role = ROLES.get(speaker)
    if role is None:
        raise RowFault(
            f"turn {number}: unknown speaker {excerpt(speaker)!r}{nearest(speaker, ROLES)}",
            f"speakers: {', '.join(ROLES)}",
        )
    kept = {key: turn[key] for key in ("train", "weight") if key in turn}
    if role == "call":
        return {"role": "assistant", "tool_calls": _calls(turn.get("value"), number), **kept}
    return {"role": role, "content": turn.get("value"), **kept}


def _calls(value: Any, number: int) -> list[dict[str, Any]]:
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise RowFault(f"turn {number}: the function call is not JSON: {excerpt(str(value))}") from error
    return calls if isinstance(calls, list) else [calls]


FORMAT = Format(
    "sharegpt",
    ("conversations",),
    ("system", "tools"),
    recognise,
    parse,
    rank=20,
    example='{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}',
)
