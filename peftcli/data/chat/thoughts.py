"""Thoughts that stand in the text of an answer, known by the marks around them: where they begin and end."""

from __future__ import annotations

import re
from collections.abc import Iterator

Stretch = tuple[int, int]
"""First and one-past-last character."""

_TAGS = ("think", "thinking", "thought", "reasoning", "seed:think")
MARKS = (
    *((f"<{name}>", f"</{name}>") for name in _TAGS),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
    # a channel of its own, which ends where that of the answer begins
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""What templates and models write before and after a thought."""
_BEGINS = "|".join(re.escape(begin) for begin, _ in MARKS)
_ENDS = re.compile("|".join(re.escape(end) for _, end in MARKS))
_MARK = re.compile(f"{_BEGINS}|{_ENDS.pattern}")
# an answer about such marks has them in the middle of its lines
_OPENED = re.compile(rf"(?:\A|\n)\s*({_BEGINS})")
_AT_END = re.compile(rf"(?:{_BEGINS})\s*\Z")


def thoughts_in(text: str, before: str = "") -> list[Stretch]:
    """The thoughts of an answer, each with its marks and the empty lines after it, in order. `before`: the text that the
    answer follows, which may have opened a thought already. One that is not closed reaches to the end."""
    return list(_found(text, opened=_AT_END.search(before) is not None))


def said_in_thoughts(text: str) -> list[str]:
    """The thoughts of an answer without marks and the white space inside them."""
    return [_MARK.sub("", text[start:end]).strip() for start, end in thoughts_in(text)]


def holds_thought(text: str) -> bool:
    """Whether a thought, or the end of one that a prompt opened, stands in a text that somebody wrote."""
    return _OPENED.search(text) is not None or _ENDS.search(text) is not None


def _found(text: str, *, opened: bool) -> Iterator[Stretch]:
    at = 0
    if opened and (closing := _ENDS.search(text)) is not None:
        at = after_lines(text, closing.end())
        yield 0, at
    while (opening := _OPENED.search(text, at)) is not None:
        closing = re.compile(re.escape(dict(MARKS)[opening[1]])).search(text, opening.end())
        at = len(text) if closing is None else after_lines(text, closing.end())
        yield opening.start(1), at


def after_lines(text: str, at: int) -> int:
    """The position, or the one after the line breaks that follow it: a space in front of a word is that word's."""
    space = re.compile(r"\s*").match(text, at)
    breaks = space[0].rfind("\n") + 1 if space is not None else 0
    return at + breaks
