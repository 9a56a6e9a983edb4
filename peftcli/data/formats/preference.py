"""Preference: pairs (`prompt`, `chosen`, `rejected`), or single rows (`prompt`, `completion`, `label`: true or false).

Each part is a text or a list of messages; the sharegpt spelling (`conversations`, one turn each) is read too. Pairs may
hold whole conversations, as messages or as one text with its speakers: what both begin with is the prompt. A verdict
(`label`, `kto_tag`) may stand beside any conversation: nobody trains on answers that were marked as bad unasked.
"""

from __future__ import annotations

from typing import Any

from peftcli.data.chat.messages import parse_messages
from peftcli.data.columns import Columns
from peftcli.data.faults import RowFault, listed
from peftcli.data.format import Format
from peftcli.data.formats import instruction, messages, sharegpt
from peftcli.data.formats.sharegpt import message_of, transcript
from peftcli.data.readers.jsonl import json_kind
from peftcli.data.rows import ChatRow, Message, PreferenceRow

_PROMPTS = ("question", "query", "instruction", "input")
"""Names under which public pairs have their prompt."""
_VERDICTS = ("label", "kto_tag")
"""Names under which public rows say whether their answer is a good one."""
_WHOLE = (messages.FORMAT, sharegpt.FORMAT, instruction.FORMAT)
"""Formats of conversations whose last answer a verdict can be about."""


def recognise(row: Columns) -> str | None:
    """By a pair of answers, or by one answer with a verdict."""
    if "chosen" in row and "rejected" in row:
        return "columns `chosen` and `rejected`"
    verdict = next((name for name in _VERDICTS if isinstance(row.get(name), bool)), None)
    kinds = (("prompt", "completion"), *(each.required for each in _WHOLE))
    answered = next((parts for parts in kinds if all(part in row for part in parts)), None)
    if verdict and answered:
        return f"columns {', '.join(f'`{part}`' for part in answered)} and a `{verdict}` that is true or false"
    return None


def parse(row: Columns) -> PreferenceRow:
    """Prompt and answers, all texts or all messages."""
    verdict = next((name for name in _VERDICTS if name in row), None)
    if verdict and "chosen" not in row:
        return _judged(row, verdict)
    chosen, rejected = _part(row, "chosen"), _part(row, "rejected")
    prompt, chosen, rejected = _with_prompt(row, chosen, rejected)
    _check_alike(prompt, chosen, rejected)
    if chosen == rejected:
        raise RowFault("'chosen' and 'rejected' are the same")
    return PreferenceRow(prompt, chosen, rejected)


def _judged(row: Columns, verdict: str) -> PreferenceRow:
    if not isinstance(row[verdict], bool):
        raise RowFault(f"{verdict!r} is {json_kind(row[verdict])}, not true or false")
    whole = next((each for each in _WHOLE if all(part in row for part in each.required)), None)
    # a whole conversation: its last message is the answer that the verdict is about
    if whole and "completion" not in row:
        read = whole.parse(row)
        assert isinstance(read, ChatRow)
        return PreferenceRow(read.messages[:-1], read.messages[-1:], liked=row[verdict])
    prompt, answer = _part(row, "prompt"), _part(row, "completion")
    _check_alike(prompt, answer)
    return PreferenceRow(prompt, answer, liked=row[verdict])


def _with_prompt(row: Columns, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    if row.get("conversations") is not None:
        return _part(row, "conversations"), chosen, rejected
    prompt = _part(row, "prompt") if row.get("prompt") is not None else None
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is not None:
            return prompt, chosen, rejected
        chosen, rejected = (_conversation(row, text) for text in (chosen, rejected))
    elif isinstance(chosen, str) or isinstance(rejected, str):
        raise RowFault("prompt and answers must all be texts or all be messages")
    before, chosen, rejected = _apart(chosen, rejected)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    # the prompt of its own must be the end of what both begin with; more may stand before it
    if prompt and before and before[-len(prompt) :] != prompt:
        raise RowFault("'chosen' and 'rejected' begin with messages that are not the prompt", "leave one of them out")
    return (before or prompt), chosen, rejected


def _apart(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """What two whole conversations begin with alike, and how each goes on."""
    shared = 0
    # the last message of each is its answer, even where both are equal
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _conversation(row: Columns, text: str) -> list[Message]:
    """The turns of a text with its speakers; any other text has no prompt."""
    turns = transcript(text)
    if len(turns) < 2:
        name = next((name for name in _PROMPTS if name in row), None)
        raise RowFault(
            "the column 'prompt' is missing",
            f"write `columns: {{prompt: {name}}}`" if name else f"add it; columns present: {listed(row)}",
        )
    return parse_messages([message_of(turn, number) for number, turn in enumerate(turns, 1)])[0]


def _part(row: Columns, part: str) -> str | list[Message]:
    value = row.get(part)
    if isinstance(value, str):
        if not value.strip():
            raise RowFault(f"{part!r} is empty")
        return value
    # a single message, which some public sets write without a list
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        if part not in row:
            raise RowFault(f"the column {part!r} is missing; columns present: {listed(row)}")
        raise RowFault(f"{part!r} is {json_kind(value)}, not text or messages")
    return parse_messages([message_of(turn, number) for number, turn in enumerate(value, 1)])[0]


def _check_alike(*parts: str | list[Message]) -> None:
    if len({isinstance(part, str) for part in parts}) > 1:
        raise RowFault("prompt and answers must all be texts or all be messages")


FORMAT = Format(
    "preference",
    (),
    (
        *("prompt", "chosen", "rejected", "completion", "conversations", "messages"),
        *("instruction", "input", "output", "system", "history", "tools", *_VERDICTS),
    ),
    recognise,
    parse,
    rank=5,
    example='{"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}',
    one_sequence=False,
    foreign_names=("dpo",),
)
