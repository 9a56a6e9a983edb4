"""Preference: pairs (`prompt`, `chosen`, `rejected`), or single rows (`prompt`, `completion`, `label`: true or false).

Each part is a text or a list of messages; the sharegpt spelling (`conversations`, one turn each) is read too.
"""

from __future__ import annotations

from typing import Any

from peftcli.data.chat.messages import parse_messages
from peftcli.data.columns import Columns
from peftcli.data.faults import RowFault, listed
from peftcli.data.format import Format
from peftcli.data.formats.sharegpt import message_of
from peftcli.data.readers.jsonl import json_kind
from peftcli.data.rows import Message, PreferenceRow

_PROMPTS = ("question", "query", "instruction", "input")
"""Names under which public pairs have their prompt."""


def recognise(row: Columns) -> str | None:
    if "chosen" in row and "rejected" in row:
        return "columns `chosen` and `rejected`"
    if "prompt" in row and "completion" in row and isinstance(row.get("label"), bool):
        return "columns `prompt`, `completion` and a `label` that is true or false"
    return None


def parse(row: Columns) -> PreferenceRow:
    if "label" in row and "chosen" not in row:
        if not isinstance(row["label"], bool):
            raise RowFault(f"'label' is {json_kind(row['label'])}, not true or false")
        prompt, answer = _part(row, "prompt"), _part(row, "completion")
        _check_alike(prompt, answer)
        return PreferenceRow(prompt, answer, liked=row["label"])
    chosen, rejected = _part(row, "chosen"), _part(row, "rejected")
    prompt, chosen, rejected = _with_prompt(row, chosen, rejected)
    _check_alike(prompt, chosen, rejected)
    if chosen == rejected:
        raise RowFault("'chosen' and 'rejected' are the same")
    return PreferenceRow(prompt, chosen, rejected)


def _with_prompt(row: Columns, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    if row.get("conversations") is not None:
        return _part(row, "conversations"), chosen, rejected
    if row.get("prompt") is not None:
        return _part(row, "prompt"), chosen, rejected
    if isinstance(chosen, str) or isinstance(rejected, str):
        name = next((name for name in _PROMPTS if name in row), None)
        raise RowFault("the column 'prompt' is missing", f"write `columns: {{prompt: {name}}}`" if name else None)
    # both hold the whole conversation: the prompt is what they share
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _part(row: Columns, part: str) -> str | list[Message]:
    value = row.get(part)
    if isinstance(value, str):
        if not value.strip():
            raise RowFault(f"{part!r} is empty")
        return value
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        if part not in row:
            raise RowFault(f"the column {part!r} is missing; columns present: {listed(row)}")
        raise RowFault(f"{part!r} is {json_kind(value)}, not text or messages")
    messages, _ = parse_messages([message_of(turn, number) for number, turn in enumerate(value, 1)])
    return messages


def _check_alike(*parts: str | list[Message]) -> None:
    if len({isinstance(part, str) for part in parts}) > 1:
        raise RowFault("prompt and answers must all be texts or all be messages")


FORMAT = Format(
    "preference",
    (),
    ("prompt", "chosen", "rejected", "completion", "label", "conversations"),
    recognise,
    parse,
    rank=5,
    example='{"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}',
    one_sequence=False,
    foreign_names=("dpo",),
)
