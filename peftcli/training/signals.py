"""Signals: the first SIGINT, SIGTERM or SIGHUP asks for a stop after the step, the second leaves at once; SIGUSR1 saves.

Handlers are installed even where SIGINT is ignored, as it is in a background job or under nohup; SIGHUP stays ignored
where it is, since that is what nohup is for. Around the training loop a run stops at once, and what it writes at its
end is written first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from peftcli import system
from peftcli.streams import painting, tell

_STOPS = system.signals("SIGINT", "SIGTERM", "SIGHUP")
_SAVES = system.signals("SIGUSR1")
_HANGUPS = system.signals("SIGHUP")
_SHOW_CURSOR = "\x1b[?25h"


class StopNow(BaseException):
    """Raised by the first stopping signal where nothing has to be finished first."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


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
        # a signal that came before the block is not forgotten
        if self.signal_number is not None:
            raise StopNow(self.signal_number)
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: the first asks for a stop after the step, or for a checkpoint; a second ends at once."""
        if number in _SAVES:
            self.save_requested = True
            return
        # the second of any of them
        if self.signal_number is not None:
            _leave(number)
        self.signal_number = number
        if self._interruptible:
            raise StopNow(number)


def _leave(number: int) -> None:
    stderr = painting(sys.stderr)
    # a live bar hides the cursor, and nothing else will run to show it again
    if stderr.isatty():
        stderr.write(_SHOW_CURSOR)
        stderr.flush()
    # at once: no handler, no flush, no thread is waited for
    os._exit(128 + number)


class RunSignals:
    """What a whole run does with signals outside of its training loop."""

    def __init__(self) -> None:
        self.late: int | None = None
        """The first stopping signal that came while the run was finishing."""
        self._finishing = False

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """A block that is not stopped midway; a second signal still leaves at once."""
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: ends the work by `StopNow`, or waits for what is being finished; then a second ends at once."""
        if not self._finishing:
            raise StopNow(number)
        if self.late is not None:
            _leave(number)
        self.late = number
        tell(
            f"{signal.Signals(number).name}: training has ended and results are being written; once more leaves at once"
        )


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Listens inside the block and puts the earlier handlers back. Outside the main thread nothing is listened to."""
    request = StopRequest()
    with _handled({number: request.receive for number in (*_STOPS, *_SAVES)}):
        yield request


@contextlib.contextmanager
def run_signals() -> Iterator[RunSignals]:
    """Around a whole run: a stop is `StopNow`, and a save finds nothing, which must not end the process as it would."""
    run = RunSignals()
    with _handled({**dict.fromkeys(_STOPS, run.receive), **dict.fromkeys(_SAVES, signal.SIG_IGN)}):
        yield run


def pass_on(number: int) -> None:
    """Gives a signal that came too late for one listener to the one around it, if there is any."""
    handler = signal.getsignal(number)
    if callable(handler):
        handler(number, None)


@contextlib.contextmanager
def _handled(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Handlers for a block; outside the main thread there can be none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    try:
        for number, handler in handlers.items():
            # nohup ignores hang-ups on purpose
            if not (number in _HANGUPS and signal.getsignal(number) is signal.SIG_IGN):
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for listened, earlier in before.items():
            # None: the handler was not installed from Python and cannot be put back
            signal.signal(listened, signal.SIG_DFL if earlier is None else earlier)
