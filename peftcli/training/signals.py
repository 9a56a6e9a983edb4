"""Signals: the first SIGINT or SIGTERM asks for a stop after the step, the second leaves at once; SIGUSR1 saves.

Handlers are installed even where SIGINT is ignored, as it is in a background job or under nohup.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_STOPS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"


class StopNow(BaseException):
    """Raised inside an interruptible block (an evaluation) by the first stopping signal."""


class StopRequest:
    """What signals have asked for so far."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.save_requested = False
        self._interruptible = False

    def take_save(self) -> bool:
        """Whether a save was asked for since the last call."""
        asked, self.save_requested = self.save_requested, False
        return asked

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block without effects on the run's state, which a stop may leave midway by `StopNow`."""
        if self.signal_number is not None:
            raise StopNow
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.save_requested = True
            return
        if self.signal_number is not None:
            _leave(number)
        self.signal_number = number
        if self._interruptible:
            raise StopNow


def _leave(number: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(_SHOW_CURSOR)
        sys.stderr.flush()
    os._exit(128 + number)


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Listens inside the block and puts the earlier handlers back. Outside the main thread nothing is listened to."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {}
    try:
        for listened in (*_STOPS, signal.SIGUSR1):
            before[listened] = signal.signal(listened, request.receive)
        yield request
    finally:
        for number, handler in before.items():
            # None: the handler was not installed from Python and cannot be put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def saving_is_harmless() -> Iterator[None]:
    """Around a whole run: SIGUSR1 outside of training finds nothing to save, and must not end the process as it would."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL if before is None else before)
