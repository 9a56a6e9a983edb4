"""Checks and evens out the messages of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.chat.marks import THOUGHT_WEIGHT, THOUGHTS
from peftcli.data.faults import RowFault, excerpt, listed
from peftcli.data.names import nearest
from peftcli.data.readers.jsonl import json_in, json_kind
from peftcli.data.rows import Message

ROLES = ("system", "developer", "user", "assistant", "tool")


def parse_messages(value: Any) -> tuple[list[Message], list[float | None]]:
    """Messages with known roles and text, and the loss weight of each (None where the recipe decides).

    Keys whose value is null are left out (columnar files give every message every key). Raises `RowFault`.
    """
    value = turns_in(value)
    if not isinstance(value, list):
        raise RowFault(f"'messages' is {json_kind(value)}, not a list of turns")
    if not value:
        raise RowFault("'messages' is empty")
    messages: list[Message] = []
    weights: list[float | None] = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict):
            raise RowFault(f"message {number} is {json_kind(turn)}, not an object with role and content")
        message = {key: part for key, part in turn.items() if part is not None}
        weights.append(_weight(message, number))
        messages.append(_message(message, turn, number))
    return messages, weights


def turns_in(value: Any, column: str = "messages") -> Any:
    """The list of turns that JSON text holds, or an object of lists as wide as there are turns; else the value itself."""
    if isinstance(value, str):
        try:
            return json_in(value)
        except ValueError as error:
            raise RowFault(
                f"{column!r} is text but not JSON",
                "write the list of turns itself, or its JSON (Python's `json.dumps`)",
            ) from error
    # columns of columns: a list of objects that Arrow turned into an object of lists
    if isinstance(value, Mapping) and value and all(isinstance(part, list) for part in value.values()):
        lengths = {len(part) for part in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    return value


def require_answer(messages: list[Message]) -> None:
    """Raises `RowFault` when nobody answers."""
    if not any(message["role"] == "assistant" for message in messages):
        raise RowFault("no assistant message: there is nothing to learn from", "remove the row or add the answer")


def _weight(message: Message, number: int) -> float | None:
    flag, weight = message.pop("train", None), message.pop("weight", None)
    if flag is not None:
        if not isinstance(flag, bool):
            raise RowFault(f"message {number}: 'train' is {json_kind(flag)}, not true or false")
        # `train: false` wins over a weight; true leaves the weight as it is
        weight = float(flag) if weight is None or not flag else weight
    if weight is None:
        return None
    return _finite(weight, "weight", number)


def _finite(weight: Any, name: str, number: int) -> float:
    # bool is an int to Python, and no weight
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        raise RowFault(f"message {number}: {name!r} must be a finite number of at least 0")
    return float(weight)


def _message(message: Message, turn: Mapping[str, Any], number: int) -> Message:
    role = message.get("role")
    if not isinstance(role, str):
        sharegpt = "from" in turn and "value" in turn
        raise RowFault(
            f"message {number} has no role; its keys: {', '.join(map(str, turn))}",
            "turns of from and value: `format: sharegpt` and `columns: {conversations: messages}`"
            if sharegpt
            else None,
        )
    if role not in ROLES:
        raise RowFault(
            f"message {number}: unknown role {excerpt(role)!r}{nearest(role, ROLES)}", f"roles: {', '.join(ROLES)}"
        )
    calls = message.get("tool_calls")
    if calls is not None and calls != []:
        message["tool_calls"] = _tool_calls(calls, number)
    else:
        message.pop("tool_calls", None)
    message["content"] = _content(message, number)
    if THOUGHT_WEIGHT in message:
        message[THOUGHT_WEIGHT] = _finite(message[THOUGHT_WEIGHT], THOUGHT_WEIGHT, number)
    # under every name, since templates differ in which they read
    return message | dict.fromkeys(THOUGHTS, thought) if (thought := _thought(message, number)) is not None else message


def _thought(message: Message, number: int) -> str | None:
    """The thought before an answer, under whichever of its names; templates find it under each of them."""
    given = {name: message[name] for name in THOUGHTS if name in message}
    for name, thought in given.items():
        if not isinstance(thought, str):
            raise RowFault(f"message {number}: {name!r} is {json_kind(thought)}, not text")
    if len(set(given.values())) > 1:
        raise RowFault(
            f"message {number}: {' and '.join(map(repr, given))} differ, and mean the same", "keep one of them"
        )
    return next(iter(given.values()), None)


def _content(message: Message, number: int) -> str:
    content = message.get("content")
    calls = "tool_calls" in message
    if content is None:
        if calls:
            return ""
        raise RowFault(
            f"message {number} ({message['role']}) has no content; its keys: {listed(message)}",
            "the text of a message is its `content`: rename the key, or remove the row",
        )
    if isinstance(content, list):
        content = _joined_parts(content, number)
    if not isinstance(content, str):
        raise RowFault(f"message {number}: content is {json_kind(content)}, not text")
    if not content.strip() and message["role"] in ("user", "assistant") and not calls:
        raise RowFault(f"message {number} ({message['role']}) has empty content")
    return content


def _joined_parts(parts: list[Any], number: int) -> str:
    texts: list[str] = []
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else json_kind(part)
            raise RowFault(f"message {number}: a content part is {kind!s}; only text parts are read")
        texts.append(part["text"])
    return "".join(texts)


def _tool_calls(calls: Any, number: int) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise RowFault(f"message {number}: 'tool_calls' is {json_kind(calls)}, not a list")
    return [_tool_call(call, number) for call in calls]


def _tool_call(call: Any, number: int) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowFault(f"message {number}: a tool call needs a function with a name and arguments")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            # templates write the arguments out as JSON themselves, so a JSON text would be quoted twice
            arguments = json_in(arguments)
        except ValueError as error:
            raise RowFault(f"message {number}: the arguments of {function['name']!r} are not JSON") from error
    if not isinstance(arguments, dict):
        raise RowFault(f"message {number}: the arguments of {function['name']!r} must be an object")
    kept = {"id": call["id"]} if call.get("id") else {}
    return {**kept, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def parse_tools(value: Any) -> list[Any] | None:
    """The tool descriptions of a row: a list, or the same as JSON text; empty means none. Raises `RowFault`."""
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json_in(value)
        except ValueError as error:
            raise RowFault("'tools' is text but not JSON") from error
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowFault("'tools' must be a list of objects")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in value]
