"""What patterns are matched against: a text with its places as bits, and the tests of one character."""

from __future__ import annotations

import re
from collections.abc import Callable
from re import _constants as sre  # type: ignore[attr-defined]
from typing import Any

Test = Callable[[str], bool]
"""Whether a character fits."""


class Text:
    """A text, and the places of its characters: bit `i` stands for the place before character `i`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.end = 1 << len(text)
        self.every = (self.end << 1) - 1
        self.line_ends = sum(1 << place for place, char in enumerate(text) if char == "\n")
        self.spent = 0
        """Ends found one by one so far: what only atomic groups need, and what is bounded for them."""
        self._places: dict[int, int] = {}

    def places(self, part: int, fits: Test) -> int:
        """Where a character fits; counted once for each part of a pattern."""
        if part not in self._places:
            self._places[part] = sum(1 << place for place, char in enumerate(self.text) if fits(char))
        return self._places[part]


Step = Callable[[Text, int], int]
"""Takes the places where a part may begin and returns those where it may end, as bits."""


def character_test(operator: Any, argument: Any, flags: int) -> Test | None:
    """The test of a part that takes one character, None for any other part."""
    if operator in (sre.LITERAL, sre.NOT_LITERAL):
        return _folded([lambda char: ord(char) == argument], operator is sre.NOT_LITERAL, flags)
    if operator is sre.ANY:
        return (lambda char: True) if flags & re.DOTALL else (lambda char: char != "\n")
    if operator is sre.IN:
        tests = [_item(kind, value, flags) for kind, value in argument if kind is not sre.NEGATE]
        return _folded(tests, len(tests) < len(argument), flags)
    return None


def _folded(tests: list[Test], negated: bool, flags: int) -> Test:
    if not flags & re.IGNORECASE:
        return lambda char: any(test(char) for test in tests) != negated
    return lambda char: any(test(form) for form in _cases(char) for test in tests) != negated


def _cases(char: str) -> list[str]:
    """A character in both cases, where they are one character."""
    return [form for form in {char, char.lower(), char.upper()} if len(form) == 1]


def _item(operator: Any, argument: Any, flags: int) -> Test:
    if operator is sre.LITERAL:
        return lambda char: ord(char) == argument
    if operator is sre.RANGE:
        return lambda char: argument[0] <= ord(char) <= argument[1]
    kinds: dict[Any, tuple[Test, bool]] = {
        sre.CATEGORY_DIGIT: (str.isdecimal, True),
        sre.CATEGORY_NOT_DIGIT: (str.isdecimal, False),
        sre.CATEGORY_SPACE: (str.isspace, True),
        sre.CATEGORY_NOT_SPACE: (str.isspace, False),
        sre.CATEGORY_WORD: (lambda char: is_word(char, 0), True),
        sre.CATEGORY_NOT_WORD: (lambda char: is_word(char, 0), False),
    }
    test, wanted = kinds[argument]
    if flags & re.ASCII:
        return lambda char: (char.isascii() and test(char)) == wanted
    return lambda char: test(char) == wanted


def is_word(char: str, flags: int) -> bool:
    """Whether a character belongs to a word."""
    return (char.isalnum() or char == "_") and (char.isascii() or not flags & re.ASCII)
