"""Members train in processes of their own: their peak memory is their own, and one that dies takes nothing with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from peftcli.errors import Interrupted

_PASSED_ON = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
_PAUSE_S = 0.05


@dataclass
class _Running:
    """Processes by the number of their command, and the signals that came meanwhile."""

    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    received: list[int] = field(default_factory=list)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        for process in self.processes.values():
            process.send_signal(number)


def run_commands(
    commands: Sequence[Sequence[str]],
    places: Sequence[Mapping[str, str]],
    *,
    begun: Callable[[int], None],
    ended: Callable[[int, int], bool],
) -> None:
    """Runs commands of ours, as many at a time as there are `places` (variables of the environment), their messages on
    our stderr. `begun` is told each command's number; `ended` its exit code too (negative for a signal), and says whether
    further ones may begin.

    A signal to us is passed on; once every process has ended, with its checkpoint written, it is `Interrupted` here.
    """
    running, waiting = _Running(), list(range(len(commands)))
    taken: dict[int, int] = {}
    with _passing_on(running):
        while running.processes or (waiting and not running.received):
            free = [place for place in range(len(places)) if place not in taken.values()]
            while waiting and free and not running.received:
                number = waiting.pop(0)
                begun(number)
                taken[number] = free.pop(0)
                running.processes[number] = _started(commands[number], places[taken[number]])
            for number, process in list(running.processes.items()):
                code = process.poll()
                if code is not None:
                    del running.processes[number], taken[number]
                    # what a signal stopped has neither come to its end nor failed
                    if not running.received and not ended(number, code):
                        waiting.clear()
            time.sleep(_PAUSE_S)
    if running.received:
        name = signal.Signals(running.received[0]).name
        raise Interrupted(
            f"stopped by {name}; finished members stay",
            signal_number=running.received[0],
            fix="the same command goes on",
        )


def _started(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # a session of its own: Ctrl-C reaches it through us, once
    return subprocess.Popen(
        [sys.executable, "-m", "peftcli.compare.child", str(os.getpid()), *arguments], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, start_new_session=True, env={**os.environ, **environment},
    )  # fmt: skip


@contextmanager
def _passing_on(running: _Running) -> Iterator[None]:
    before = {number: signal.signal(number, running.pass_on) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in running.processes.values():
            process.terminate()
            process.wait()
