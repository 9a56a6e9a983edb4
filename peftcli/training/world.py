"""A run's processes as the training loop sees them: alone, or several that meet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from peftcli.launching.places import Place


class World:
    """The processes of a run as one of them sees them. The base class is a run of one process: it talks to nobody."""

    place = Place()
    in_step = False
    """Whether no process may compute alone: each holds a part of the base, which a pass of any needs of all."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self.place.rank

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.place.size

    @property
    def leads(self) -> bool:
        """Whether this process writes what the run leaves behind."""
        return self.place.leads

    def meet(self, what: str, said: Any = None) -> list[Any]:
        """What every process said (JSON), in their order. All call it, at the same point of the run."""
        return [said]

    def any(self, what: str, answer: bool) -> bool:
        """Whether one of the processes says yes."""
        return any(self.meet(what, bool(answer)))

    def add(self, shares: Sequence[Tensor], owners: Sequence[int], *, length: int, device: torch.device) -> Tensor:
        """The sum of shares, each (length,) float32, added in the order of `owners`: the process that has each of them.

        `shares`: those of this process, in that order; some may have none.
        """
        first, *others = shares
        total = first.clone()
        for each in others:
            total += each
        return total

    def told_by_leader(self, what: str, said: Any = None) -> Any:
        """What the leading process said."""
        return self.meet(what, said)[0]

    @contextlib.contextmanager
    def listening(self, asked: Callable[[], int | None]) -> Iterator[None]:
        """Inside the block `pause` leaves by `StopNow` where `asked` tells one of the processes a signal's number."""
        yield

    def pause(self) -> None:
        """A point of a long block where it may be left; all processes pass it equally often."""


ALONE = World()
"""A run of one process."""
