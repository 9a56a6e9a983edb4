"""`{"conversations": [{"from": "human", "value": ...}, ...]}`, also with function calls and observations.

The turns may also stand in one text, each after its speaker: `USER: ...`, an empty line, `ASSISTANT: ...`.
"""

from __future__ import annotations

import re
from typing import Any

from peftcli.data.chat.messages import parse_messages, parse_tools, require_answer, turns_in
from peftcli.data.columns import Columns, called, optional_text
from peftcli.data.faults import RowFault, excerpt, listed
from peftcli.data.format import Format
from peftcli.data.names import nearest
from peftcli.data.readers.jsonl import json_in, json_kind
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


# a speaker at the very start or after an empty line; a colon inside an answer is no speaker
_SPEAKER = re.compile(r"(?:\A|\n\s*\n)[ \t]*((?:FUNCTION |TOOL )?[A-Z]+|[A-Z][a-z]+)[ \t]*:(?=\s)")
_END = re.compile(r"\s*(?:<\|endoftext\|>|</s>)\s*\Z")


def recognise(row: Columns) -> str | None:
    """By a column `conversations` that holds turns, as a list, as JSON or as a transcript."""
    turns = row.get("conversations")
    if isinstance(turns, str) and turns.lstrip().startswith("[{"):
        return "a column `conversations` that holds a list of turns as JSON text"
    if isinstance(turns, str) and len(transcript(turns)) > 1:
        return "a column `conversations` that holds turns that follow the names of their speakers"
    if isinstance(turns, dict):
        turns = turns_in(turns, "conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return "a column `conversations` that holds a list of turns"
    return None


def parse(row: Columns) -> ChatRow:
    """The conversation under OpenAI's names; `RowFault` for a speaker that nobody knows."""
    turns = row.get("conversations")
    if isinstance(turns, str):
        # a text without speakers may be the JSON of a list
        turns = transcript(turns) or (turns_in(turns, "conversations") if turns.lstrip().startswith("[") else turns)
    turns = turns_in(turns) if isinstance(turns, dict) else turns
    if not isinstance(turns, list):
        raise RowFault(f"{called(row, 'conversations')} is {json_kind(turns)}, not a list of turns")
    converted = [message_of(turn, number) for number, turn in enumerate(turns, 1)]
    # some files write the speaker into the system text as well
    system = optional_text(row, "system").strip().removeprefix("SYSTEM:").strip()
    if system:
        converted.insert(0, {"role": "system", "content": system})
    messages, weights = parse_messages(converted)
    require_answer(messages)
    return ChatRow(messages, weights, parse_tools(row.get("tools")))


def transcript(text: str) -> list[dict[str, str]]:
    """The turns of one text; none when it does not begin with a speaker. The end token after a turn is left out."""
    # upper-case words before a colon are speakers only where they are known as such
    found = [match for match in _SPEAKER.finditer(text) if _role(match[1]) in ROLES]
    if not found or text[: found[0].start()].strip():
        return []
    ends = [*(match.start() for match in found[1:]), len(text)]
    turns = zip(found, ends, strict=True)
    return [{"from": _role(match[1]), "value": _END.sub("", text[match.end() : end]).strip()} for match, end in turns]


def _role(speaker: str) -> str:
    return speaker.lower().replace(" ", "_")


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
    if turn.get("value") is None:
        raise RowFault(f"turn {number} has no 'value'; its keys: {listed(turn)}", "the text of a turn is its `value`")
    kept = {key: turn[key] for key in ("train", "weight") if key in turn}
    if role == "call":
        return {"role": "assistant", "tool_calls": _calls(turn.get("value"), number), **kept}
    return {"role": role, "content": turn.get("value"), **kept}


def _calls(value: Any, number: int) -> list[dict[str, Any]]:
    try:
        calls = json_in(value) if isinstance(value, str) else value
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
    usual={
        "conversations": ("conversation", "messages", "dialog", "dialogue", "turns", "chat"),
        "system": ("system_prompt",),
    },
)
