"""How much one rendering may do: loop turns, characters, time. Counted by the instrumented template itself."""

from __future__ import annotations

import time
from typing import Any

MAX_TURNS = 1_000_000
MAX_CHARACTERS = 64 << 20
MAX_SECONDS = 10.0
MAX_REPEAT = 1 << 20


class TemplateLimit(Exception):
    """A chat template does more work than any conversation needs."""


class Budget:
    """Work left to a rendering. `start` fills it; the others take from it and raise `TemplateLimit`."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._turns = MAX_TURNS
        self._characters = MAX_CHARACTERS
        self._deadline = time.monotonic() + MAX_SECONDS

    def loop(self, items: Any) -> Any:
        """Passes on what a loop runs over and counts its turns."""
        if not hasattr(items, "__len__"):
            items = list(self._drawn(items))
        self.turns(len(items))
        return items

    def _drawn(self, items: Any) -> Any:
        for count, item in enumerate(items):
            if count > MAX_TURNS:
                raise TemplateLimit(f"a loop of more than {MAX_TURNS:,} turns")
            yield item

    def turns(self, count: int) -> None:
        self._turns -= count + 1
        if self._turns < 0:
            raise TemplateLimit(f"more than {MAX_TURNS:,} loop turns")
        if time.monotonic() > self._deadline:
            raise TemplateLimit(f"more than {MAX_SECONDS:g} seconds")

    def written(self, value: Any) -> Any:
        """Passes on a value that is written or joined and counts its characters."""
        if type(value) is str:
            self.characters(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.characters(len(str(value)))
        return value

    def characters(self, count: int) -> None:
        self._characters -= count
        if self._characters < 0:
            raise TemplateLimit(f"more than {MAX_CHARACTERS:,} characters of text")

    def add(self, left: Any, right: Any) -> Any:
        result = left + right
        if type(result) is str:
            self.characters(len(result))
        elif isinstance(result, list):
            self.turns(len(result))
        return result

    def concatenate(self, *parts: Any) -> str:
        texts = [str(part) for part in parts]
        self.characters(sum(map(len, texts)))
        return "".join(texts)
