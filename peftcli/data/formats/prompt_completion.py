"""`{"prompt": ..., "completion": ...}`: texts, or messages on either side.

Two texts are a question and its answer: a chat under a template, else one text after the other. The completion of a row
with tools may be a list of calls. For texts that are never to be wrapped: `format: segments`.
"""

from __future__ import annotations

from typing import Any

from peftcli.data.chat.messages import parse_messages, parse_tools
from peftcli.data.columns import Columns, filled_text, text_part
from peftcli.data.faults import RowFault
from peftcli.data.format import Format
from peftcli.data.readers.jsonl import json_in
from peftcli.data.rows import ChatRow, Message, Piece, PiecesRow


def recognise(row: Columns) -> str | None:
    """By its two required columns."""
    return "columns `prompt` and `completion`" if "prompt" in row and "completion" in row else None


def parse(row: Columns) -> ChatRow:
    """A conversation; of two texts also the same without a template (`plain`)."""
    tools = parse_tools(row.get("tools"))
    turns = _turns(row.get("completion"), called=tools is not None)
    if turns is None and not _is_turns(row.get("prompt")):
        return _texts(row, tools)
    before = row["prompt"] if _is_turns(row.get("prompt")) else [_said("user", text_part(row, "prompt"))]
    after = [_said("assistant", filled_text(row, "completion"))] if turns is None else turns
    return _conversation(before, after, tools)


def _texts(row: Columns, tools: list[Any] | None) -> ChatRow:
    prompt, completion = text_part(row, "prompt"), filled_text(row, "completion")
    # tools have no place in a plain text
    plain = None if tools else PiecesRow((Piece(prompt, None), Piece(completion, 1.0)))
    return ChatRow([_said("user", prompt), _said("assistant", completion)], [None, None], tools, plain)


def _conversation(before: list[Message], after: list[Message], tools: list[Any] | None) -> ChatRow:
    asked, _ = parse_messages(before)
    answer, weights = parse_messages(after)
    if not any(message["role"] == "assistant" for message in answer):
        raise RowFault("the completion has no assistant message")
    # the answers of the prompt are context, whatever `train_on` says
    context: list[float | None] = [0.0] * len(asked)
    return ChatRow([*asked, *answer], context + weights, tools)


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _turns(value: Any, *, called: bool) -> list[Message] | None:
    """A completion as messages, or None where it is (or has to be) text. `called`: the row has tools to be called."""
    entries = [value] if isinstance(value, dict) else value
    # text that looks like JSON counts as calls only where there are tools to call
    if called and isinstance(value, str) and value.lstrip().startswith(("[{", "{")):
        entries = _from_json(value)
    if not _is_turns(entries):
        return None
    if all("name" in entry and "arguments" in entry and "role" not in entry for entry in entries):
        return [{"role": "assistant", "tool_calls": entries}]
    return None if isinstance(value, str) or not all("role" in entry for entry in entries) else entries


def _from_json(text: str) -> Any:
    try:
        found = json_in(text)
    except ValueError:
        return None
    return [found] if isinstance(found, dict) else found


FORMAT = Format(
    "prompt-completion",
    ("prompt", "completion"),
    ("tools",),
    recognise,
    parse,
    rank=40,
    example='{"prompt": "2 + 2 =", "completion": " 4"}',
    usual={
        "prompt": (
            *("question", "query", "input", "inputs", "input_text", "problem", "user", "human"),
            *("article", "document", "dialogue"),
        ),
        "completion": (
            *(
                "answer",
                "response",
                "answers",
                "output",
                "targets",
                "target",
                "target_text",
                "solution",
                "assistant",
                "bot",
            ),
            *("highlights", "summary", "answers.text.0"),
        ),
    },
    foreign_names=("prompt_completion",),
)
