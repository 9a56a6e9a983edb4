"""The trained text of a conversation: where each answer stands, and whether the template writes all that was given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from peftcli.data.chat.answers import AnswerPlace, Hit, locate
from peftcli.data.chat.borders import Borders
from peftcli.data.chat.conversation import Conversation, Template
from peftcli.data.chat.frames import Frames
from peftcli.data.chat.limits import TemplateFailure, TemplateRefusal
from peftcli.data.chat.marks import THOUGHT_WEIGHT, THOUGHTS, Leaf
from peftcli.data.chat.remedy import remedy_for
from peftcli.data.chat.thoughts import Stretch, holds_thought, said_in_thoughts, thoughts_in
from peftcli.data.faults import RowFault
from peftcli.data.rows import MASKED, ChatRow, Message

if TYPE_CHECKING:
    from peftcli.data.config import TrainOn


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of the rendered text are an answer with its stop token, or a thought or what stands
    around one where the two weigh differently."""

    start: int
    end: int
    weight: float


@dataclass(slots=True)
class RenderedChat:
    """A conversation as text; `hits`: (check, message) of what is wrong with its template."""

    text: str
    spans: list[Span] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)


class Renderer:
    """Renders rows with one template. Raises what the template raises, and `RowFault` for rows that cannot be trained."""

    def __init__(self, template: Template, borders: Borders, train_on: TrainOn, thoughts: float = 1.0) -> None:
        self._template = template
        self._borders = borders
        self._train_on = train_on
        self._thoughts = thoughts
        self._frames = Frames()
        self._losses: dict[tuple[object, ...], list[Hit]] = {}
        self._remedies: dict[str, str] = {}

    def render(self, row: ChatRow) -> RenderedChat:
        """The row's text and trained spans."""
        weights = message_weights(row, self._train_on)
        # where the text around answers is trained, an answer of weight 0 is to be left out of it
        wanted = [
            number
            for number, weight in enumerate(weights)
            if weight > 0 or (self._train_on == "all" and row.weights[number] == 0)
        ]
        # without a place for tools the template need not be given them; that they are lost is told below
        placed = not row.tools or "tools" in self._template.reads
        messages, thought_weights = without_thought_weights(row.messages, self._thoughts)
        conversation = Conversation(self._template, messages, row.tools if placed else None)
        out = RenderedChat(conversation.text, hits=list(self._lost(conversation, wanted)))
        if not placed:
            out.hits.append(("lost-tools", "the row describes tools, and the chat template has no place for them"))
        if self._thoughts != 1 and not any(_thinks(messages[number]) for number in wanted):
            out.hits.append(("no-thoughts", "no answer has a thought, which `data.thoughts` is about"))
        for number in wanted:
            answer = self._answer(conversation, number)
            # spans must ascend: tokens are weighted in one pass
            if out.spans and answer.start < out.spans[-1].end:
                raise RowFault(f"message {number + 1}: the chat template writes its answer before an earlier one ends")
            out.spans += weighed(conversation, number, answer, weights[number], thought_weights[number])
            if self._ends_twice(conversation.text[answer.start : answer.end], messages[number]):
                what = (
                    "the answer's text ends with a stop token, and the template writes another at the end of its turn"
                )
                out.hits.append(("doubled-end", f"message {number + 1}: {what}"))
            out.hits += [(check, self._told(conversation, number, check, why)) for check, why in answer.hits]
        return out

    def _answer(self, conversation: Conversation, number: int) -> AnswerPlace:
        tools = bool(conversation.tools)
        # a first message has no prompt, so no frame either
        if number and conversation.text.startswith(prompt := conversation.prompt(number)):
            found = self._frames.find(conversation.text, len(prompt), conversation.messages, number, tools)
            if found is not None:
                return found
        answer = locate(conversation, number, self._borders)
        if number:
            self._frames.learn(conversation, number, answer)
        return answer

    def _ends_twice(self, answer: str, message: Message) -> bool:
        """Whether the text of a message spells the end of its turn itself, and is given another."""
        if not self._borders.ends_with_stop(str(message["content"])) or message.get("tool_calls"):
            return False
        stops = self._borders.stops_in(answer)
        # a template without an end leaves it to the text
        return len(stops) > 1 and not answer[stops[-2].end() : stops[-1].start()].strip()

    def _told(self, conversation: Conversation, number: int, check: str, why: str) -> str:
        if check in ("prompt-mismatch", "empty-thought"):
            # trying settings takes many renderings; one remedy holds for the template
            if check not in self._remedies:
                self._remedies[check] = remedy_for(conversation, number, check, self._borders)
            why += self._remedies[check]
        return f"message {number + 1}: {why}"

    def _lost(self, conversation: Conversation, wanted: Sequence[int]) -> list[Hit]:
        """What the row holds and the template does not write; looked at once for each shape of rows without calls."""
        shape = tuple(map(_shape, conversation.messages)), bool(conversation.tools), tuple(wanted)
        calls = any("tool_calls" in message for message in conversation.messages)
        # rows of one shape lose the same parts, except that calls differ by their arguments
        if calls or shape not in self._losses:
            self._losses[shape] = lost(conversation, wanted)
        return self._losses[shape]


def weighed(
    conversation: Conversation, number: int, answer: AnswerPlace, weight: float, share: float
) -> Iterator[Span]:
    """The answer as spans of one weight each: its thoughts weigh `share` of the rest. `RowFault` where the template
    does not show where one ends."""
    if share != 1 and answer.thought < 0:
        raise RowFault(
            f"message {number + 1}: the chat template does not show where its thought ends",
            "`data.thoughts: train`; or write the thought into the content, between <think> and </think>",
        )
    at = answer.start
    for start, end in () if share == 1 else _thoughts(conversation, number, answer):
        if at < start:
            yield Span(at, start, weight)
        yield Span(start, end, weight * share or MASKED)
        at = end
    if at < answer.end:
        yield Span(at, answer.end, weight)


def _thoughts(conversation: Conversation, number: int, answer: AnswerPlace) -> list[Stretch]:
    """Where the thoughts of an answer stand in the text: the one given apart, those that its content holds."""
    text, start = conversation.text, max(answer.start, answer.thought)
    found = [(answer.start, answer.thought)] if answer.thought > answer.start else []
    # marks that the row does not give are the template's own: an empty thought, which is no part of the answer
    if not holds_thought(str(conversation.messages[number]["content"])):
        return found
    inside = thoughts_in(text[start : answer.end], text[:start])
    return found + [(start + begin, start + end) for begin, end in inside]


def _thinks(message: Message) -> bool:
    given = any(isinstance(message.get(name), str) and message[name].strip() for name in THOUGHTS)
    return given or holds_thought(str(message["content"]))


def without_thought_weights(messages: Sequence[Message], thoughts: float) -> tuple[list[Message], list[float]]:
    """The messages as the template gets them, and how much the thoughts of each weigh beside its answer. `thoughts`: of
    messages that do not say. Raises `RowFault` for a message that is no answer and says."""
    shares: list[float] = []
    for number, message in enumerate(messages, 1):
        if THOUGHT_WEIGHT in message and message["role"] != "assistant":
            raise RowFault(
                f"message {number} ({message['role']}) has a {THOUGHT_WEIGHT!r}, and only answers have thoughts"
            )
        shares.append(float(message.get(THOUGHT_WEIGHT, thoughts)))
    return [{key: part for key, part in each.items() if key != THOUGHT_WEIGHT} for each in messages], shares


def _shape(message: Message) -> tuple[object, ...]:
    kinds = [name for name, value in message.items() if isinstance(value, str) and value.strip()]
    thinks = holds_thought(str(message["content"]))
    return message["role"], *sorted(kinds), len(message.get("tool_calls", ())), thinks


def lost(conversation: Conversation, wanted: Sequence[int]) -> list[Hit]:
    """Texts that are given and not written: a finding, or a `RowFault` where they belong to an answer that is trained."""
    found = conversation.places
    if found is None:
        return []
    hits: list[Hit] = []
    for number, leaf in enumerate(found.leaves):
        if found.shown(number):
            if (
                leaf.kind == "content"
                and leaf.message in wanted
                and any(each not in conversation.text for each in said_in_thoughts(leaf.text))
            ):
                hits.append(_dropped(leaf.message))
            continue
        if leaf.kind == "thought":
            hits.append(_dropped(leaf.message))
        elif leaf.message in wanted:
            raise RowFault(f"message {leaf.message + 1}: the chat template does not render {_what(leaf)}")
        else:
            role = conversation.messages[leaf.message]["role"]
            what = f"message {leaf.message + 1} ({role}): the chat template leaves out {_what(leaf)}"
            hits.append(("lost-text", what))
    return hits


def _dropped(message: int) -> Hit:
    return "dropped-thoughts", f"message {message + 1}: the chat template leaves its thought out"


def _what(leaf: Leaf) -> str:
    return (
        f"the whole of tool call {leaf.call}" if leaf.call else "the text" if leaf.kind == "content" else "the thought"
    )


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


def turn_end(template: Template, borders: Borders) -> str:
    """What the template writes after a plain answer as the end of its turn; empty where it does not tell."""
    messages: list[Message] = [
        {"role": "user", "content": "A question."},
        {"role": "assistant", "content": "An answer."},
    ]
    try:
        conversation = Conversation(template, messages, None)
        answer = locate(conversation, 1, borders)
    except (RowFault, TemplateRefusal, TemplateFailure):
        # a template with needs of its own
        return ""
    found = conversation.places_of(1)
    last = None if found is None else found.last(1)
    return "" if last is None else conversation.text[last : answer.end]
