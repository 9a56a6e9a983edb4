"""Marks around the texts of messages, so that a rendering itself shows where each text stands in it.

A rendering with marks counts only where it is, without its marks, the plain rendering to the letter: then nothing in the
template looked at what the marks changed, and every place is exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from peftcli.data.rows import Message

LeafKind = Literal["thought", "content", "name", "argument"]
"""What a text inside a message is to the template."""
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Names of one thing, the thought before an answer; the first is the one that most templates read."""

THOUGHT_WEIGHT = "thought_weight"
"""Key of a message: how much its thoughts weigh beside its answer, where `data.thoughts` is not to say."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A text of a message. `call`: number of the tool call that it belongs to, from 1; 0 outside of calls."""

    message: int
    kind: LeafKind
    text: str
    call: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """Where marks are set: at both ends of a text or after it only; in every message or in one."""

    begins: bool = True
    only: int | None = None


@dataclass(slots=True)
class Places:
    """Where the leaves stand in a rendering: positions in it of their first and after their last letter."""

    text: str
    leaves: list[Leaf]
    begins: dict[int, int] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)

    def of(self, message: int, *kinds: LeafKind) -> list[int]:
        """Numbers of the leaves of a message, of these kinds or of all."""
        return [
            number
            for number, leaf in enumerate(self.leaves)
            if leaf.message == message and (not kinds or leaf.kind in kinds)
        ]

    def shown(self, number: int) -> bool:
        """Whether the template wrote a leaf at all."""
        return number in self.begins or number in self.ends

    def first(self, message: int) -> int | None:
        """Where the message's first text begins."""
        return min((self.begins[number] for number in self.of(message) if number in self.begins), default=None)

    def last(self, message: int) -> int | None:
        """Where the message's last text ends."""
        return max((self.ends[number] for number in self.of(message) if number in self.ends), default=None)

    def next_begin(self, message: int) -> int | None:
        """Where the first text of a later message begins."""
        later = [self.begins[n] for n, leaf in enumerate(self.leaves) if leaf.message > message and n in self.begins]
        return min(later, default=None)

    def inside(self, message: int, start: int, end: int) -> int | None:
        """Another message whose text begins between two positions; None where there is none."""
        others = (self.leaves[n].message for n, at in self.begins.items() if start <= at < end)
        return next((other for other in others if other != message), None)


Render = Callable[[Sequence[Message]], str]


def places(render: Render, messages: Sequence[Message], plain: str, policies: Sequence[Policy]) -> Places | None:
    """The leaves' places in `plain`, which `render(messages)` gives; None where the template looks at every mark."""
    for policy in policies:
        marked, leaves, nonce = mark(messages, policy, plain)
        found = read_marks(render(marked), leaves, nonce)
        if found.text == plain:
            return found
    return None


def mark(messages: Sequence[Message], policy: Policy, plain: str) -> tuple[list[Message], list[Leaf], str]:
    """The messages with marks, their leaves by number, and the word that makes these marks unlike any text."""
    nonce = _nonce(messages, plain)
    leaves: list[Leaf] = []

    def around(text: str, message: int, kind: LeafKind, call: int = 0) -> str:
        # marks stand inside the white space, which templates strip or keep as it is
        core = text.strip()
        if not core or policy.only not in (None, message):
            return text
        number = len(leaves)
        leaves.append(Leaf(message, kind, text, call))
        at = text.index(core)
        begin = f"{nonce}{number}b" if policy.begins else ""
        return f"{text[:at]}{begin}{core}{nonce}{number}e{text[at + len(core) :]}"

    return [_marked(message, number, around) for number, message in enumerate(messages)], leaves, nonce


def _nonce(messages: Sequence[Message], plain: str) -> str:
    whole = plain + repr(messages)
    # a number is added until the word occurs nowhere: neither in the row nor in what the template writes
    number = 0
    while (nonce := f"Qv{number}z") in whole:
        number += 1
    return nonce


_Around = Callable[..., str]


def _marked(message: Message, number: int, around: _Around) -> Message:
    marked = dict(message)
    thought = next((message[name] for name in THOUGHTS if isinstance(message.get(name), str)), None)
    # all names of a thought get the same mark: a template reads one of them
    if thought is not None:
        text = around(thought, number, "thought")
        marked |= {name: text for name in THOUGHTS if name in message}
    if isinstance(message.get("content"), str):
        marked["content"] = around(message["content"], number, "content")
    if "tool_calls" in message:
        calls = enumerate(message["tool_calls"], 1)
        marked["tool_calls"] = [_marked_call(call, number, place, around) for place, call in calls]
    return marked


def _marked_call(call: dict[str, Any], number: int, place: int, around: _Around) -> dict[str, Any]:
    function = call["function"]
    name = around(function["name"], number, "name", place)
    return {
        **call,
        "function": {**function, "name": name, "arguments": _deep(function["arguments"], number, place, around)},
    }


def _deep(value: Any, number: int, place: int, around: _Around) -> Any:
    if isinstance(value, str):
        return around(value, number, "argument", place)
    if isinstance(value, dict):
        return {key: _deep(part, number, place, around) for key, part in value.items()}
    if isinstance(value, list):
        return [_deep(part, number, place, around) for part in value]
    return value


def read_marks(rendered: str, leaves: list[Leaf], nonce: str) -> Places:
    """The rendering without its marks, and where they stood; of a leaf that is written twice its first place."""
    found = Places("", leaves)
    parts: list[str] = []
    length = 0
    for text, number, side in _pieces(rendered, nonce):
        parts.append(text)
        length += len(text)
        if side:
            # `setdefault`: a text that is written twice counts where it comes first
            (found.begins if side == "b" else found.ends).setdefault(number, length)
    found.text = "".join(parts)
    return found


def _pieces(rendered: str, nonce: str) -> Iterator[tuple[str, int, str]]:
    at = 0
    for hit in re.finditer(rf"{nonce}(\d+)([be])", rendered):
        yield rendered[at : hit.start()], int(hit[1]), hit[2]
        at = hit.end()
    yield rendered[at:], 0, ""
