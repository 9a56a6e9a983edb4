"""A tokenizer is asked for tokens or text: bounded in time and memory, whatever it makes of a text of its own choosing.

`tokenizer.json` is a program of a stranger's. What it does on ordinary texts is tried before it is used
(`models.tokenizer_trial`); a regular expression or a decoder that goes astray on one certain row is stopped here. Only
calls for batches are used: in those the library lets other threads run, and in the others it does not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from peftcli.bounded_call import Bounds, OutOfBounds, within_bounds
from peftcli.errors import ModelError

T = TypeVar("T")
SECONDS = 40.0
"""Beyond what the size of the texts explains."""
_CHARACTERS_A_SECOND = 100_000
"""A tenth of what the slowest tokenizers do, so that honest ones are in time on a machine that has other work."""
_EXTRA_BYTES = 1 << 30
_BYTES_PER_CHARACTER = 512
"""A token takes about 200 bytes with its offsets, and the library holds it twice for a while."""


class TokenizerLimit(ModelError):
    """The tokenizer does not come to an end on a text. `in_memory`: it takes ever more memory, also from now on."""

    def __init__(self, reason: str, *, in_memory: bool, where: str | None = None) -> None:
        super().__init__(
            f"the tokenizer needs {reason} on a text, which no tokenizer does",
            where=where,
            fix="correct or remove the text; where the model is not yours, do not trust it",
        )
        self._reason = reason
        self.in_memory = in_memory

    def at(self, where: str) -> TokenizerLimit:
        """The same, with the place of the text."""
        return TokenizerLimit(self._reason, in_memory=self.in_memory, where=where)


def bounded(work: Callable[[], T], *, size: int, seconds: float | None = None) -> T:
    """What `work` returns, which asks a tokenizer about `size` characters or tokens. Raises `TokenizerLimit`.

    `seconds`: beyond what that size explains; None: `SECONDS`.
    """
    allowed = (SECONDS if seconds is None else seconds) + size / _CHARACTERS_A_SECOND
    bounds = Bounds(allowed, _EXTRA_BYTES + _BYTES_PER_CHARACTER * size)
    try:
        return within_bounds(work, bounds)
    except OutOfBounds as limit:
        raise TokenizerLimit(str(limit), in_memory=limit.in_memory) from None


class Allowance(threading.local):
    """Seconds that a thread may still lose with a tokenizer, so that many slow calls are bounded as one is."""

    def __init__(self) -> None:
        self._left: float | None = None

    @contextmanager
    def of(self, seconds: float | None = None) -> Iterator[None]:
        """All calls inside share so many seconds beyond what the size of their texts explains; None: `SECONDS`."""
        before, self._left = self._left, SECONDS if seconds is None else seconds
        try:
            yield
        finally:
            self._left = before

    def bounded(self, work: Callable[[], T], *, size: int) -> T:
        """As `bounded`, of what is left."""
        began = time.monotonic()
        try:
            return bounded(work, size=size, seconds=self._left)
        finally:
            if self._left is not None:
                lost = max(time.monotonic() - began - size / _CHARACTERS_A_SECOND, 0)
                self._left = max(self._left - lost, 0)


def token_ids(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """Ids of a text by a transformers tokenizer; `special`: with what it puts around a text."""
    # a call of the tokenizer is a batch of one
    return bounded(lambda: list(tokenizer(text, add_special_tokens=special)["input_ids"]), size=len(text))


def text_of(tokenizer: Any, ids: Sequence[int], **settings: Any) -> str:
    """The text of ids by a transformers tokenizer, as its `decode` gives it with these settings."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # a rehearsal: `decode` asks for one row, during which no other thread runs, and then tidies up as it pleases
        skipped = bool(settings.get("skip_special_tokens", False))
        bounded(lambda: backend.decode_batch([list(ids)], skip_special_tokens=skipped), size=len(ids))
    return str(tokenizer.decode(ids, **settings))
