"""The open-ended values of the grammar: persons, products and codes, put together from pieces.

Values are combinations, so that a model has to copy them and cannot know them by heart. A fixed eighth of all names,
of all brands and of all codes is held out (`is_held_out`): no such value occurs in pre-training or in any train split,
and every row of a validation split is made of such values only.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    "Ada Ben Cora Dan Ella Finn Gina Hans Ida Jon Kira Leo Mira Nils Olga Pia Rosa Sam Tara Udo Vera Will Yara Zoe "
    "Aron Bella Carl Dora Emil Fay Gus Hope Ivan Judy Karl Lisa Max Nora Otto Paul"
)
LAST_NAMES = _words(
    "Holt Berg Lind Marsh Stone Vale Cross Hart Kent Lane Moore Nash Page Reed Shaw Todd Voss Webb York Zell Abel "
    "Bond Cole Dean Eden Ford Gray Hill Ives Judd King Long Mann North Odell Park Rice Sand Tate Upton Vance West"
)
BRAND_STARTS = _words(
    "Zor Aqua Blu Cry Dyn Echo Flu Glo Hyp Jet Kry Lum Mag Nex Orb Pyr Qui Ryn Syl Tor Umb Vol Wav Zeph"
)
BRAND_ENDS = _words("Vex Tek Nix Dra Pod Sta Fy Zen Cor Bit Wick Sky Tra Mo Lux Ray Con Dot Max Wing")
NOUNS = _words(
    "lamp kettle radio heater camera clock drill fan mixer printer scale speaker toaster vacuum watch bike tent chair "
    "desk mirror oven pump router razor scooter shaver stove tablet torch trimmer blender keyboard"
)
CODE_WORDS = _words(
    "oak river fox stone cloud amber maple wolf lake pine crow ember frost reed moss cedar hawk dune fern iron coral "
    "birch otter flint plum ridge swan thorn wren ash bear cliff daisy elm finch grove heron ivy jade kite lark mint "
    "olive pearl robin sage teal"
)

_HELD_OUT_SHARE = 8


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of the options; uses `random()` only, the one method whose sequence Python guarantees for a seed."""
    return options[int(rng.random() * len(options))]


def chance(rng: random.Random, probability: float) -> bool:
    return rng.random() < probability


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    rest, order = list(items), []
    while rest:
        order.append(rest.pop(int(rng.random() * len(rest))))
    return order


def is_held_out(value: str) -> bool:
    """Whether a name, a brand or a code belongs to validation: a property of its text, the same in every script."""
    return zlib.crc32(value.encode("utf-8")) % _HELD_OUT_SHARE == 0


def _draw(rng: random.Random, held_out: bool, make: Callable[[], str]) -> str:
    while True:
        value = make()
        if is_held_out(value) == held_out:
            return value


def person(rng: random.Random, held_out: bool = False) -> str:
    """A first and a last name, such as `Mira Holt`."""
    return _draw(rng, held_out, lambda: f"{pick(rng, FIRST_NAMES)} {pick(rng, LAST_NAMES)}")


def brand(rng: random.Random, held_out: bool = False) -> str:
    """A brand of two pieces, such as `ZorVex`."""
    return _draw(rng, held_out, lambda: pick(rng, BRAND_STARTS) + pick(rng, BRAND_ENDS))


def product(rng: random.Random, held_out: bool = False) -> str:
    """A brand and what it is, such as `ZorVex lamp`."""
    return f"{brand(rng, held_out)} {pick(rng, NOUNS)}"


def code(rng: random.Random, held_out: bool = False, words: int = 3) -> str:
    """An order code of different words, such as `oak-river-fox`."""
    return _draw(rng, held_out, lambda: "-".join(shuffled(rng, CODE_WORDS)[:words]))
