"""Calls into a library that no signal stops, with bounds on their time and memory.

The work runs in a thread that whoever asks can leave behind: nothing ends a thread in foreign code, but nobody needs to
wait for it, and it ends with the process. So this bounds calls that let other threads run meanwhile, and no others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from peftcli import system

T = TypeVar("T")
_LOOK_SECONDS = 0.05
"""Between two looks at the memory: a library takes some hundred MiB in this time at most."""
_running: set[threading.Thread] = set()


@dataclass(frozen=True)
class Bounds:
    """`seconds`: here by the clock; `extra_bytes`: above the most that this process has had."""

    seconds: float
    extra_bytes: int


class OutOfBounds(Exception):
    """A call needs more than its bounds. `in_memory`: more memory, of which it goes on to take."""

    def __init__(self, message: str, *, in_memory: bool) -> None:
        super().__init__(message)
        self.in_memory = in_memory


def within_bounds(work: Callable[[], T], bounds: Bounds) -> T:
    """What the work returns; raises what it raises, and `OutOfBounds` where it does not come to an end."""
    return _Call(work).outcome(bounds)


def any_left_behind() -> bool:
    """Whether such work still runs. A process that ends in the usual way would wait until the library lets go."""
    return any(thread.is_alive() for thread in list(_running))


class _Call(Generic[T]):
    """A piece of work in its thread."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._returned: T
        self._raised: BaseException | None = None
        # a lock and no event, which costs twice as much: some calls take less than a millisecond
        self._ended = threading.Lock()
        self._ended.acquire()
        # a daemon, which the interpreter does not wait for
        self._thread = threading.Thread(target=self._run, daemon=True)
        _running.add(self._thread)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._returned = self._work()
        except BaseException as error:  # a library's panic is no `Exception`; whoever waits raises it again
            self._raised = error
        finally:
            _running.discard(self._thread)
            self._ended.release()

    def outcome(self, bounds: Bounds) -> T:
        # before the wait, for the peak must not hold what the work has taken already
        most = system.peak_memory_bytes() + bounds.extra_bytes
        ends = time.monotonic() + bounds.seconds
        while not self._ended.acquire(timeout=min(_LOOK_SECONDS, max(ends - time.monotonic(), 0))):
            if system.peak_memory_bytes() > most:
                raise OutOfBounds(f"more than {bounds.extra_bytes >> 20:,} MiB of memory", in_memory=True)
            if time.monotonic() >= ends:
                raise OutOfBounds(f"more than {bounds.seconds:.0f} seconds", in_memory=False)
        if self._raised is not None:
            raise self._raised
        return self._returned
