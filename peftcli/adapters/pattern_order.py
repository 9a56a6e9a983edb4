"""The ends of a part of a pattern in the order in which `re` tries them: what decides inside an atomic group.

Each end is given once, at its first turn: whatever could follow from a later turn at the same place has been tried. So a
part has at most as many ends as the text has places, and their number all in all is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from re import _constants as sre  # type: ignore[attr-defined]
from typing import Any

from peftcli.adapters.pattern_text import Step, Text, character_test
from peftcli.errors import AdapterError

MAX_ENDS = 4_000
"""Ends that one text may cost; the usual patterns need a few hundred."""

Ordered = Callable[[Text, int], Iterator[int]]
"""Takes the place where a part begins and gives the places where it may end, the first choice first."""
ZeroWidth = Callable[[Any, Any, int], Step]
"""Makes the step of a part that takes no characters."""


def ordered(parsed: Any, flags: int, zero_width: ZeroWidth) -> Ordered:
    """The parts of a pattern one after another."""
    parts = [_part(operator, argument, flags, zero_width) for operator, argument in parsed]

    def run(text: Text, place: int) -> Iterator[int]:
        return _chained(parts, text, place)

    return run


def _chained(parts: list[Ordered], text: Text, place: int) -> Iterator[int]:
    if not parts:
        yield place
        return
    yield from _once(text, (end for middle in parts[0](text, place) for end in _chained(parts[1:], text, middle)))


def _once(text: Text, ends: Iterable[int]) -> Iterator[int]:
    seen: set[int] = set()
    for end in ends:
        text.spent += 1
        if text.spent > MAX_ENDS:
            raise too_long()
        if end not in seen:
            seen.add(end)
            yield end


def too_long() -> AdapterError:
    """The error of a pattern whose atomic groups cost more than a path is worth."""
    return AdapterError(
        "an atomic group or possessive repeat takes too long on this model's paths", fix="a list of names is enough"
    )


def _part(operator: Any, argument: Any, flags: int, zero_width: ZeroWidth) -> Ordered:
    test = character_test(operator, argument, flags)
    if test is not None:
        return lambda text, place: iter([place + 1] if place < len(text.text) and test(text.text[place]) else [])
    if operator is sre.SUBPATTERN:
        return ordered(argument[3], (flags | argument[1]) & ~argument[2], zero_width)
    if operator is sre.BRANCH:
        branches = [ordered(branch, flags, zero_width) for branch in argument[1]]
        return lambda text, place: _once(text, (end for branch in branches for end in branch(text, place)))
    if operator is sre.ATOMIC_GROUP:
        return _first(ordered(argument, flags, zero_width))
    if operator in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        least, most, inner = argument
        return _Repeat(least, most, ordered(inner, flags, zero_width), greedy=operator is sre.MAX_REPEAT)
    if operator is sre.POSSESSIVE_REPEAT:
        return _possessive(argument[0], argument[1], ordered(argument[2], flags, zero_width))
    step = zero_width(operator, argument, flags)
    return lambda text, place: iter([place] if step(text, 1 << place) else [])


def _first(part: Ordered) -> Ordered:
    def run(text: Text, place: int) -> Iterator[int]:
        for end in part(text, place):
            yield end
            return

    return run


def _possessive(least: int, most: Any, part: Ordered) -> Ordered:
    """Turn after turn, each at its first end; a turn that takes nothing is the last one."""

    def run(text: Text, place: int) -> Iterator[int]:
        count = 0
        while most is sre.MAXREPEAT or count < most:
            end = next(_once(text, part(text, place)), None)
            if end is None or end == place:
                # turns that are still owed may all take nothing
                count = least if end is not None else count
                break
            place, count = end, count + 1
        if count >= least:
            yield place

    return run


class _Repeat:
    """A part again and again; a turn that takes nothing is the last one."""

    def __init__(self, least: int, most: Any, part: Ordered, *, greedy: bool) -> None:
        self.least, self.most, self.part, self.greedy = least, most, part, greedy

    def __call__(self, text: Text, place: int) -> Iterator[int]:
        return _once(text, self._turns(text, place, 0, set()))

    def _turns(self, text: Text, place: int, count: int, seen: set[tuple[int, int]]) -> Iterator[int]:
        # beyond the least number, turns count only where there is a most
        bounded = count < self.least or self.most is not sre.MAXREPEAT
        state = (place, count if bounded else self.least)
        if state in seen:
            return
        seen.add(state)
        enough = count >= self.least
        if enough and not self.greedy:
            yield place
        if self.most is sre.MAXREPEAT or count < self.most:
            for end in self.part(text, place):
                if end != place:
                    yield from self._turns(text, end, count + 1, seen)
                elif not enough:
                    # the turns that are still owed may all take nothing
                    yield from self._turns(text, end, self.least, seen)
        if enough and self.greedy:
            yield place
