"""Regular expressions that cannot run away: patterns of files are matched without backtracking.

Python's `re` may try a number of ways that is exponential in the length of a path. Here all places where a part of the
pattern can end are followed at once, as bits of one number (Thompson, CACM 11, 1968), so that the work is bounded by the
lengths of pattern and path. The syntax is that of `re`; back references, which need backtracking, are refused.

An atomic group (and a possessive repeat) goes on from one place alone: the end that `re` would try first. Inside one, ends
are found in that order (`pattern_order`).
"""

from __future__ import annotations

import functools
import re
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any

from peftcli.adapters.pattern_order import Ordered, ordered, too_long
from peftcli.adapters.pattern_text import Step, Text, character_test, is_word
from peftcli.errors import AdapterError

MAX_LENGTH = 1000
# paths of modules have some hundred characters
MAX_TEXT = 2000
_READ_FLAGS = re.UNICODE | re.IGNORECASE | re.DOTALL | re.MULTILINE | re.VERBOSE | re.ASCII


class Pattern:
    """A compiled pattern."""

    def __init__(self, pattern: str) -> None:
        parsed = sre_parser.parse(pattern)
        if parsed.state.flags & ~_READ_FLAGS:
            raise re.error("this flag is not supported")
        self._step = _sequence(parsed, parsed.state.flags)

    def fullmatch(self, text: str) -> bool:
        """Whether the pattern matches the whole text."""
        place = Text(text[:MAX_TEXT])
        return bool(self._step(place, 1) & place.end)

    def match(self, text: str) -> bool:
        """Whether the pattern matches the beginning of the text."""
        return bool(self._step(Text(text[:MAX_TEXT]), 1))


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


def _sequence(parsed: Any, flags: int) -> Step:
    steps = [_part(operator, argument, flags) for operator, argument in parsed]

    def run(text: Text, places: int) -> int:
        for step in steps:
            places = step(text, places)
            if not places:
                break
        return places

    return run


def _part(operator: Any, argument: Any, flags: int) -> Step:
    test = character_test(operator, argument, flags)
    if test is not None:
        # places as bits: those where the character fits, one further on
        return lambda text, places: (places & text.places(id(test), test)) << 1
    if operator is sre.SUBPATTERN:
        # flags set and cleared inside a group, `(?i-s:...)`
        return _sequence(argument[3], (flags | argument[1]) & ~argument[2])
    if operator is sre.BRANCH:
        return _branch([_sequence(branch, flags) for branch in argument[1]])
    if operator in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        return _repeat(argument[0], argument[1], _sequence(argument[2], flags))
    if operator in (sre.ATOMIC_GROUP, sre.POSSESSIVE_REPEAT):
        return _first_end(ordered([(operator, argument)], flags, zero_width))
    return zero_width(operator, argument, flags)


def zero_width(operator: Any, argument: Any, flags: int) -> Step:
    """A part that takes no characters: anchors and what is looked at. Raises `re.error` for any other part."""
    if operator in (sre.ASSERT, sre.ASSERT_NOT):
        return _look(argument[0] > 0, operator is sre.ASSERT, _sequence(argument[1], flags))
    if operator is sre.AT:
        return _anchor(argument, flags)
    raise re.error(f"{str(operator).lower().replace('_', ' ')} is not supported")


def _branch(branches: list[Step]) -> Step:
    return lambda text, places: functools.reduce(lambda found, step: found | step(text, places), branches, 0)


def _repeat(least: int, most: Any, step: Step) -> Step:
    def run(text: Text, places: int) -> int:
        for _ in range(least):
            before, places = places, step(text, places)
            # a part that reaches nothing new will not, however often it is repeated
            if places == before:
                break
        reached = frontier = places
        count = least
        while frontier and (most is sre.MAXREPEAT or count < most):
            # only what is new is followed: each place is entered once, so the loop ends
            frontier = step(text, frontier) & ~reached
            reached |= frontier
            count += 1
        return reached

    return run


def _first_end(part: Ordered) -> Step:
    """From each place, the end that comes first."""

    def run(text: Text, places: int) -> int:
        found = 0
        for place in range(len(text.text) + 1):
            if places >> place & 1:
                try:
                    end = next(iter(part(text, place)), None)
                except RecursionError as error:
                    raise too_long() from error
                found |= 0 if end is None else 1 << end
        return found

    return run


def _look(ahead: bool, wanted: bool, step: Step) -> Step:
    def run(text: Text, places: int) -> int:
        single = [1 << place for place in range(len(text.text) + 1)]
        if ahead:
            found = sum(place for place in single if step(text, place))
        else:
            # backwards there is no text to run over: every place is tried as a beginning
            found = functools.reduce(lambda reached, place: reached | step(text, place), single, 0)
        return places & (found if wanted else text.every & ~found)

    return run


def _anchor(kind: Any, flags: int) -> Step:
    lines = bool(flags & re.MULTILINE)
    if kind in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING):
        each = lines and kind is sre.AT_BEGINNING
        return lambda text, places: places & (1 | (text.line_ends << 1 if each else 0))
    if kind in (sre.AT_END, sre.AT_END_STRING):
        each = lines and kind is sre.AT_END
        return lambda text, places: places & (text.end | (text.line_ends if each else 0))
    wanted = kind is sre.AT_BOUNDARY

    def boundary(text: Text, places: int) -> int:
        words = [False, *(is_word(char, flags) for char in text.text), False]
        edges = sum(1 << place for place in range(len(words) - 1) if words[place] != words[place + 1])
        return places & (edges if wanted else text.every & ~edges)

    return boundary
