"""A member trains in a process of its own: its peak memory is its own, and one that dies takes nothing with it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from peftcli.errors import Interrupted

_PASSED_ON = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP


def run_command(arguments: Sequence[str]) -> int:
    """Runs a command of ours with its messages on our stderr; returns its exit code, negative for a signal.

    A signal to us is passed on; once the member has ended, with its checkpoint written, it is `Interrupted` here.
    """
    # a session of its own: Ctrl-C reaches it through us, once
    process = subprocess.Popen(
        [sys.executable, "-m", "peftcli", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if process.poll() is None:
            process.terminate()
            process.wait()
    if received:
        name = signal.Signals(received[0]).name
        raise Interrupted(
            f"stopped by {name}; finished members stay", signal_number=received[0], fix="the same command goes on"
        )
    return code
