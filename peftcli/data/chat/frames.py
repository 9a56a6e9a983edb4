"""What a template writes around an answer, learnt from one row and recognised in the next ones to the letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftcli.data.chat.answers import AnswerPlace, Hit
from peftcli.data.chat.conversation import Conversation
from peftcli.data.chat.marks import THOUGHTS, LeafKind
from peftcli.data.rows import Message

# more shapes than a template has; after that rows are located one by one, which is slower and as exact
MAX_FRAMES = 16


@dataclass(frozen=True, slots=True)
class Frame:
    """`pieces`: text and the kind of the message's text after it, by turns; then `closing`, which is still trained, and
    `rest`, up to the next message's text or the end. Training begins `skipped` characters after the prompt. `behind`:
    how many characters after a thought still belong to it, -1 where the template does not show that."""

    pieces: tuple[tuple[str, LeafKind], ...]
    closing: str
    rest: str
    last: bool
    skipped: int
    hits: tuple[Hit, ...]
    behind: int = 0

    def match(self, text: str, at: int, message: Message) -> AnswerPlace | None:
        """The answer after the prompt that ends at `at`, where the text is this frame around the message's texts."""
        start = at + self.skipped
        prompt, thought = at, 0
        for literal, kind in self.pieces:
            if not text.startswith(literal, at):
                return None
            at += len(literal)
            whole = _text(message, kind)
            if not text.startswith(whole, at):
                # templates often strip the text that they write
                whole = whole.strip()
                if not text.startswith(whole, at):
                    return None
            at += len(whole)
            if kind == "thought":
                thought = -1 if self.behind < 0 else at + self.behind
        if not text.startswith(self.closing, at) or not text.startswith(self.rest, at + len(self.closing)):
            return None
        end = at + len(self.closing)
        # the frame of a last answer ends with the text, else it would match in the middle
        if self.last and end + len(self.rest) != len(text):
            return None
        return AnswerPlace(start, end, prompt, self.hits, thought)


FrameKey = tuple[Any, ...]


class Frames:
    """The frames of a template by the shape of the answer and of the turns around it."""

    def __init__(self) -> None:
        self._known: dict[FrameKey, list[Frame]] = {}

    def find(self, text: str, prompt: int, messages: Sequence[Message], number: int, tools: bool) -> AnswerPlace | None:
        """The answer at message `number`, by a frame that was learnt from another row; None where none fits."""
        for frame in self._known.get(_key(messages, number, tools), ()):
            found = frame.match(text, prompt, messages[number])
            if found is not None:
                return found
        return None

    def learn(self, conversation: Conversation, number: int, answer: AnswerPlace) -> None:
        """Keeps the frame of an answer that was located, where it has one."""
        known = self._known.setdefault(_key(conversation.messages, number, bool(conversation.tools)), [])
        frame = _frame(conversation, number, answer)
        if frame is not None and frame not in known and len(known) < MAX_FRAMES:
            known.append(frame)


def _key(messages: Sequence[Message], number: int, tools: bool) -> FrameKey:
    return (
        messages[number - 1]["role"],
        messages[number + 1]["role"] if number + 1 < len(messages) else None,
        "tool_calls" in messages[number],
        bool(_text(messages[number], "thought")),
        tools,
    )


def _text(message: Message, kind: LeafKind) -> str:
    if kind == "content":
        return str(message["content"])
    return next((str(message[name]) for name in THOUGHTS if message.get(name)), "")


def _frame(conversation: Conversation, number: int, answer: AnswerPlace) -> Frame | None:
    """None where the texts do not stand there letter for letter (calls, cut thoughts, white space around them)."""
    found = conversation.places_of(number)
    if answer.prompt < 0 or found is None or "tool_calls" in conversation.messages[number]:
        return None
    text, at = conversation.text, answer.prompt
    pieces: list[tuple[str, LeafKind]] = []
    behind = 0
    begins = sorted((found.begins[leaf], leaf) for leaf in found.of(number) if leaf in found.begins)
    for begin, leaf in begins:
        known = found.leaves[leaf]
        if begin < at or text[begin : found.ends.get(leaf)] != known.text:
            return None
        pieces.append((text[at:begin], known.kind))
        at = begin + len(known.text)
        if known.kind == "thought":
            behind = -1 if answer.thought < 0 else answer.thought - at
    # up to the next text, or to the end of all
    following = found.next_begin(number)
    last = number == len(conversation.messages) - 1
    skipped = answer.start - answer.prompt
    if not pieces or skipped > len(pieces[0][0]) or answer.end < at or (following is None) != last:
        return None
    rest = text[answer.end : following]
    return Frame(tuple(pieces), text[at : answer.end], rest, last, skipped, answer.hits, behind)
