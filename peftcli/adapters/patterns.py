"""Regular expressions that cannot run away: patterns of files are matched without backtracking.

Python's `re` may try a number of ways that is exponential in the length of a path. Here all places where a part of the
pattern can end are followed at once, as bits of one number (Thompson, CACM 11, 1968), so that the work is bounded by the
lengths of pattern and path. The syntax is that of `re`; back references, which need backtracking, are refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any

from peftcli.errors import AdapterError

MAX_LENGTH = 1000
MAX_TEXT = 2000

Step = Callable[["_Text", int], int]
"""Takes the places where a part may begin and returns those where it may end, as bits."""


class _Text:
    """A text, and the places of its characters: bit `i` stands for the place before character `i`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.end = 1 << len(text)
        self.every = (self.end << 1) - 1
        self._places: dict[int, int] = {}

    def places(self, part: int, fits: Callable[[str], bool]) -> int:
        """Where a character fits; counted once for each part of a pattern."""
        if part not in self._places:
            self._places[part] = sum(1 << place for place, char in enumerate(self.text) if fits(char))
        return self._places[part]


class Pattern:
    """A compiled pattern."""

    def __init__(self, pattern: str) -> None:
        parsed = sre_parser.parse(pattern)
        if parsed.state.flags & ~re.UNICODE:
            raise re.error("flags are not supported")
        self._step = _sequence(parsed)

    def fullmatch(self, text: str) -> bool:
        """Whether the pattern matches the whole text."""
        place = _Text(text[:MAX_TEXT])
        return bool(self._step(place, 1) & place.end)

    def match(self, text: str) -> bool:
        """Whether the pattern matches the beginning of the text."""
        return bool(self._step(_Text(text[:MAX_TEXT]), 1))


@functools.lru_cache(maxsize=4096)
def compile_pattern(pattern: str, *, what: str) -> Pattern:
    """Compiles a pattern; `what` names the field that it stands in. Raises `AdapterError`."""
    if len(pattern) > MAX_LENGTH:
        raise AdapterError(
            f"{what}: the pattern is longer than {MAX_LENGTH} characters", fix="a list of names is enough"
        )
    try:
        return Pattern(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise AdapterError(
            f"{what}: not a regular expression that is read here ({error})",
            where=repr(pattern[:80]),
            fix="a list of names is enough",
        ) from error


def _sequence(parsed: Any) -> Step:
    steps = [_part(operator, argument) for operator, argument in parsed]

    def run(text: _Text, places: int) -> int:
        for step in steps:
            places = step(text, places)
            if not places:
                break
        return places

    return run


def _part(operator: Any, argument: Any) -> Step:
    if operator in (sre.LITERAL, sre.NOT_LITERAL):
        return _character(lambda char: (ord(char) == argument) == (operator is sre.LITERAL))
    if operator is sre.ANY:
        return _character(lambda char: char != "\n")
    if operator is sre.IN:
        return _character(_set(argument))
    if operator is sre.SUBPATTERN and not argument[1] and not argument[2]:
        return _sequence(argument[3])
    if operator is sre.BRANCH:
        return _branch([_sequence(branch) for branch in argument[1]])
    if operator in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        return _repeat(argument[0], argument[1], _sequence(argument[2]))
    if operator in (sre.ASSERT, sre.ASSERT_NOT):
        return _look(argument[0] > 0, operator is sre.ASSERT, _sequence(argument[1]))
    if operator is sre.AT:
        return _anchor(argument)
    raise re.error(f"{str(operator).lower().replace('_', ' ')} is not supported")


def _character(fits: Callable[[str], bool]) -> Step:
    return lambda text, places: (places & text.places(id(fits), fits)) << 1


def _set(items: Any) -> Callable[[str], bool]:
    tests = [_item(operator, argument) for operator, argument in items if operator is not sre.NEGATE]
    negated = len(tests) < len(items)
    return lambda char: any(test(char) for test in tests) != negated


def _item(operator: Any, argument: Any) -> Callable[[str], bool]:
    if operator is sre.LITERAL:
        return lambda char: ord(char) == argument
    if operator is sre.RANGE:
        return lambda char: argument[0] <= ord(char) <= argument[1]
    kinds: dict[Any, Callable[[str], bool]] = {
        sre.CATEGORY_DIGIT: str.isdecimal,
        sre.CATEGORY_NOT_DIGIT: lambda char: not char.isdecimal(),
        sre.CATEGORY_SPACE: str.isspace,
        sre.CATEGORY_NOT_SPACE: lambda char: not char.isspace(),
        sre.CATEGORY_WORD: _is_word,
        sre.CATEGORY_NOT_WORD: lambda char: not _is_word(char),
    }
    return kinds[argument]


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _branch(branches: list[Step]) -> Step:
    return lambda text, places: functools.reduce(lambda found, step: found | step(text, places), branches, 0)


def _repeat(least: int, most: Any, step: Step) -> Step:
    def run(text: _Text, places: int) -> int:
        for _ in range(least):
            before, places = places, step(text, places)
            if places == before:
                break
        reached = frontier = places
        count = least
        while frontier and (most is sre.MAXREPEAT or count < most):
            frontier = step(text, frontier) & ~reached
            reached |= frontier
            count += 1
        return reached

    return run


def _look(ahead: bool, wanted: bool, step: Step) -> Step:
    def run(text: _Text, places: int) -> int:
        single = [1 << place for place in range(len(text.text) + 1)]
        if ahead:
            found = sum(place for place in single if step(text, place))
        else:
            found = functools.reduce(lambda reached, place: reached | step(text, place), single, 0)
        return places & (found if wanted else text.every & ~found)

    return run


def _anchor(kind: Any) -> Step:
    if kind in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING):
        return lambda text, places: places & 1
    if kind in (sre.AT_END, sre.AT_END_STRING):
        return lambda text, places: places & text.end
    wanted = kind is sre.AT_BOUNDARY

    def boundary(text: _Text, places: int) -> int:
        words = [False, *(_is_word(char) for char in text.text), False]
        edges = sum(1 << place for place in range(len(words) - 1) if words[place] != words[place + 1])
        return places & (edges if wanted else text.every & ~edges)

    return boundary
