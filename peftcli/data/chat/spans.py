"""Where the trained text lies in a rendered conversation, found by rendering prefixes of it.

For the answer at message i, the text before it is what the template renders for the messages before with its generation
prompt: exactly what the model is given at inference. The answer is what follows, up to and with its stop token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peftcli.data.chat.template import ChatTemplate
from peftcli.data.config import TrainOn
from peftcli.data.faults import RowFault
from peftcli.data.rows import ChatRow, Message

_THOUGHT_END = "</think>"


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of the rendered text are an answer with its stop token."""

    start: int
    end: int
    weight: float


@dataclass(slots=True)
class Rendered:
    """A conversation as text; `hits`: (check, message) of what is wrong with its template."""

    text: str
    spans: list[Span] = field(default_factory=list)
    hits: list[tuple[str, str]] = field(default_factory=list)


class Renderer:
    """Renders rows with one template. `stops`: pattern of the special tokens that may end an answer; None: no such."""

    def __init__(self, template: ChatTemplate, stops: re.Pattern[str] | None, train_on: TrainOn) -> None:
        self._template = template
        self._train_on = train_on
        self._stop = re.compile(rf"\s*(?:{stops.pattern})") if stops else None
        self._stop_at_end = re.compile(rf"(?:{stops.pattern})\s*\Z") if stops else None

    def render(self, row: ChatRow) -> Rendered:
        """The row's text and trained spans. `RowFault` where an answer cannot be found in the text."""
        messages, tools = row.messages, row.tools
        self._check_tools(row)
        out = Rendered(self._template.render(messages, tools))
        for number, weight in enumerate(message_weights(row, self._train_on)):
            # where the text around answers is trained, an answer of weight 0 is to be left out of it
            if weight > 0 or (self._train_on == "all" and row.weights[number] == 0):
                start = self._start(out, messages, number, tools)
                out.spans.append(Span(start, self._end(out, start, messages, number, tools), weight))
        return out

    def _check_tools(self, row: ChatRow) -> None:
        if row.tools and "tools" not in self._template.reads:
            raise RowFault("the row describes tools, and the chat template has no place for them")
        if not self._template.calls_tools and any("tool_calls" in message for message in row.messages):
            raise RowFault("the row calls tools, and the chat template does not write tool calls")

    def _start(self, out: Rendered, messages: Sequence[Message], number: int, tools: Any) -> int:
        after = out.spans[-1].end if out.spans else 0
        if number == 0:
            # nothing was asked before: no template renders a prompt of no messages
            return _find(out.text, messages[0], after)
        prompt = self._template.render(messages[:number], tools, prompt=True)
        if out.text.startswith(prompt) and len(prompt) >= after:
            return len(prompt)
        shared = _shared_length(out.text, prompt)
        out.hits.append(
            (
                "prompt-mismatch",
                f"message {number + 1}: the prompt at inference is not the text before the answer in training "
                f"(they part after {shared} characters)",
            )
        )
        return _find(out.text, messages[number], after)

    def _end(self, out: Rendered, start: int, messages: Sequence[Message], number: int, tools: Any) -> int:
        message = messages[number]
        if "tool_calls" not in message and (end := self._plain_end(out.text, start, message["content"])):
            return end
        region = self._region(out, start, messages, number, tools)
        if not _holds_answer(region, message):
            raise RowFault(f"message {number + 1}: the chat template does not render this answer")
        length = len(region.rstrip())
        if self._stop_at_end is None or not self._stop_at_end.search(region):
            out.hits.append(("stop-token", f"message {number + 1}: no stop token follows the answer"))
        return start + length

    def _plain_end(self, text: str, start: int, content: str) -> int | None:
        """The end when the content stands there as it is, or stripped, and a special token follows."""
        if self._stop is None:
            return None
        if not text.startswith(content, start):
            content = content.strip()
            while start < len(text) and text[start].isspace():
                start += 1
            if not text.startswith(content, start):
                return None
        found = self._stop.match(text, start + len(content))
        return found.end() if found else None

    def _region(self, out: Rendered, start: int, messages: Sequence[Message], number: int, tools: Any) -> str:
        """The text from `start` to the end of the message, told from the conversation cut off behind it."""
        if number == len(messages) - 1:
            return out.text[start:]
        cut_off = self._template.render(messages[: number + 1], tools)
        tail = cut_off[start:] if cut_off[:start] == out.text[:start] else ""
        # some templates drop the thought of an answer once another turn follows: then the rest of it must be there
        probe = out.text[start : start + 8]
        at = 0
        while tail[at:] and not out.text.startswith(tail[at:], start):
            at = tail.find(probe, at + 1)
            if at < 0:
                break
        if at < 0 or not tail[at:].strip():
            raise RowFault(f"message {number + 1}: the chat template renders this answer differently when turns follow")
        return tail[at:]


def message_weights(row: ChatRow, train_on: TrainOn) -> list[float]:
    """The loss weight of each message: only answers carry loss here (`all` is about the text around them).

    Raises `RowFault` for a weight of another message, which would have no effect.
    """
    for number, (message, given) in enumerate(zip(row.messages, row.weights, strict=True), 1):
        if message["role"] != "assistant" and given is not None and (given > 0 or train_on == "all"):
            raise RowFault(
                f"message {number} ({message['role']}) has a weight of its own, and only answers can have one",
                "the format `segments` weighs any part of a row",
            )
    weights = [
        (1.0 if weight is None else weight) if message["role"] == "assistant" else 0.0
        for message, weight in zip(row.messages, row.weights, strict=True)
    ]
    if train_on != "last-turn":
        return weights
    last = max((number for number, message in enumerate(row.messages) if message["role"] == "assistant"), default=-1)
    return [weight if number == last else 0.0 for number, weight in enumerate(weights)]


def _find(text: str, message: Message, after: int) -> int:
    content = message["content"].strip()
    at = text.find(content, after) if content else -1
    if at < 0:
        raise RowFault("the chat template does not render the answer where it can be found")
    return at


def _holds_answer(region: str, message: Message) -> bool:
    content = message["content"].strip()
    answer = content.rsplit(_THOUGHT_END, 1)[-1].strip()
    names = [call["function"]["name"] for call in message.get("tool_calls", ())]
    return (content in region or bool(answer and answer in region)) and all(name in region for name in names)


def _shared_length(one: str, other: str) -> int:
    length = min(len(one), len(other))
    return next((at for at in range(length) if one[at] != other[at]), length)
