"""Evaluation by several processes: each takes some of the batches that one process would, and all get every result."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

Batch = TypeVar("Batch")


class Sharing(Protocol):
    """The processes that evaluate together."""

    @property
    def rank(self) -> int:
        """Number of this one."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def in_step(self) -> bool:
        """Whether all must compute equally often, each holding a part of the model."""

    def meet(self, what: str, said: Any = None) -> list[Any]:
        """What each says (JSON), in their order."""

    def pause(self) -> None:
        """A point where the work may be left; all pass it equally often."""


class _Alone:
    rank, size, in_step = 0, 1, False

    def meet(self, what: str, said: Any = None) -> list[Any]:
        return [said]

    def pause(self) -> None:
        """Nobody else waits: one process is left at any point."""


ALONE: Sharing = _Alone()
"""One process, which has all batches."""


def turns(batches: Sequence[Batch], sharing: Sharing) -> Iterator[tuple[Batch, bool]]:
    """The batches of this process, one a turn, and whether it is this one's own. All take equally many turns.

    In a turn that has none for it a process that must keep in step computes the last batch for nothing.
    """
    for start in range(0, len(batches), sharing.size):
        sharing.pause()
        place = start + sharing.rank
        if place < len(batches):
            yield batches[place], True
        elif sharing.in_step:
            yield batches[-1], False


def packed(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON, bit for bit."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"type": array.dtype.str, "shape": list(array.shape), "data": data}


def unpacked(facts: dict[str, Any]) -> np.ndarray:
    """The inverse of `packed`."""
    flat = np.frombuffer(base64.b64decode(facts["data"]), dtype=np.dtype(facts["type"]))
    return flat.reshape(facts["shape"])
