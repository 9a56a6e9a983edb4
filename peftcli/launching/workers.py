"""A command of ours in several processes of this machine, watched until all have ended.

The first of them leads: its document on stdout is the outcome, its messages reach the user as they come. What the others
say is kept and only told where one of them is what went wrong. A signal to the launcher goes to all; when one dies the
others have `GRACE_SECONDS` to end by themselves, with what they know written.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from peftcli import system
from peftcli.errors import PeftcliError, ProcessLost, error_from
from peftcli.launching.places import LIFELINE, RENDEZVOUS

GRACE_SECONDS = 15.0
_LOOK_SECONDS = 0.05
_STOPS = system.signals("SIGINT", "SIGTERM", "SIGHUP")
_PASSED_ON = (*_STOPS, *system.signals("SIGUSR1"))


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    """What it printed on stdout."""
    told: IO[bytes] | None
    """Its messages; None where they went to our stderr."""
    ended_by_us: bool = False

    @property
    def code(self) -> int | None:
        return self.process.returncode

    def document(self) -> dict[str, Any]:
        """Its JSON document; empty where it did not come to print one."""
        self.said.seek(0)
        with contextlib.suppress(ValueError):
            found = json.loads(self.said.read())
            return found if isinstance(found, dict) else {}
        return {}

    def close(self) -> None:
        """Lets go of what it said."""
        for stream in (self.said, self.told):
            if stream is not None:
                stream.close()

    def last_words(self) -> str:
        """The last line of its messages."""
        if self.told is None:
            return ""
        self.told.seek(0)
        lines = [line.strip() for line in self.told.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""


def run_in_workers(arguments: Sequence[str], processes: int) -> dict[str, Any]:
    """Runs `peft ARGUMENTS` in so many processes, which find each other; returns the leading one's JSON document.

    Raises what the run raised in whichever process it was, and `ProcessLost` where one was killed.
    """
    with _ended_workers(arguments, processes) as workers:
        return _outcome(workers)


@contextlib.contextmanager
def _ended_workers(arguments: Sequence[str], processes: int) -> Iterator[list[_Worker]]:
    """The workers once all of them have ended, with what they said."""
    with tempfile.TemporaryDirectory(prefix="peftcli-processes-") as folder, _lifeline() as line:
        environment = {**os.environ, **_surroundings(Path(folder), processes)}
        workers = [_start(arguments, rank, environment, Path(folder), line) for rank in range(processes)]
        try:
            with _passing_on(workers):
                _wait(workers)
        finally:
            _end(workers)
        try:
            yield workers
        finally:
            for worker in workers:
                worker.close()


def relay_workers(arguments: Sequence[str], processes: int) -> int:
    """Runs `peft ARGUMENTS` in so many processes, and says on stdout what the leading one said; returns its exit code.

    Raises `ProcessLost` where one was killed.
    """
    with _ended_workers(arguments, processes) as workers:
        leader = workers[0]
        killed = _killed_of(workers)
        if leader.ended_by_us or leader.code is None or leader.code < 0 or (leader.code and killed):
            raise _killed(*killed[0], len(workers)) if killed else ProcessLost("a process did not end", fix=_GO_ON)
        leader.said.seek(0)
        sys.stdout.write(leader.said.read().decode("utf-8", "replace"))
        return leader.code


def _surroundings(folder: Path, processes: int) -> dict[str, str]:
    found = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), RENDEZVOUS: str(folder / "rendezvous")}
    # all are on this machine: the name of the host need not be known to any network
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    loop = next((name for name in ("lo", "lo0") if name in names), None)
    if loop is not None and "GLOO_SOCKET_IFNAME" not in os.environ:
        found["GLOO_SOCKET_IFNAME"] = loop
    return found


def _start(
    arguments: Sequence[str], rank: int, environment: dict[str, str], folder: Path, lifeline: int | None
) -> _Worker:
    said = (folder / f"said-{rank}").open("w+b")
    told = None if rank == 0 else (folder / f"told-{rank}").open("w+b")
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **({} if lifeline is None else {LIFELINE: str(lifeline)})}
    process = subprocess.Popen(
        [sys.executable, "-m", "peftcli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=told,
        env={**environment, **own},
        # a session of its own: Ctrl-C reaches it through us, once
        start_new_session=True,
        pass_fds=() if lifeline is None else (lifeline,),
    )
    return _Worker(process, said, told)


@contextlib.contextmanager
def _lifeline() -> Iterator[int | None]:
    """The end of a pipe for the workers: whatever ends us closes the other one."""
    if not system.DESCRIPTORS_ARE_INHERITED:
        yield None
        return
    theirs, ours = os.pipe()
    try:
        yield theirs
    finally:
        os.close(theirs)
        os.close(ours)


@contextlib.contextmanager
def _passing_on(workers: Sequence[_Worker]) -> Iterator[None]:
    """Signals to us reach every worker; outside of the main thread nothing is listened to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.send_signal(number)

    # a hang-up that is ignored, under nohup, stays so in the workers too
    heard = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN or number != _hangup()]
    before = {number: signal.signal(number, pass_on) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _hangup() -> int | None:
    return next(iter(system.signals("SIGHUP")), None)


def _wait(workers: Sequence[_Worker]) -> None:
    """Until all have ended, or one has and the others did not follow in time."""
    first_end: float | None = None
    # each is asked: one that died while the first still waits for it must be seen
    while None in [worker.process.poll() for worker in workers]:
        # the leader's end is the end of the run; any other's is one only where it failed
        ended = workers[0].code is not None or any(worker.code for worker in workers)
        if ended and first_end is None:
            first_end = time.monotonic()
        if first_end is not None and time.monotonic() - first_end > GRACE_SECONDS:
            return
        time.sleep(_LOOK_SECONDS)


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            worker.ended_by_us = True
            worker.process.kill()
            worker.process.wait()


def _outcome(workers: Sequence[_Worker]) -> dict[str, Any]:
    leader = workers[0]
    document = leader.document()
    if not leader.ended_by_us and document and "error" not in document:
        # done, or done with an expectation that was not met: the document says so
        return document
    killed = _killed_of(workers)
    if killed:
        raise _killed(*killed[0], len(workers))
    errors = [_error(worker.document().get("error"), worker) for worker in workers if worker.code]
    known = [error for error in errors if not isinstance(error, ProcessLost)]
    raise next(iter(known or errors), ProcessLost("the processes ended without a word", fix=_GO_ON))


def _killed_of(workers: Sequence[_Worker]) -> list[tuple[int, _Worker]]:
    """Those that a signal has ended, and not we."""
    return [(rank, worker) for rank, worker in enumerate(workers) if (worker.code or 0) < 0 and not worker.ended_by_us]


_GO_ON = "`peft resume` goes on from the newest checkpoint"


def _killed(rank: int, worker: _Worker, processes: int) -> ProcessLost:
    number = -(worker.code or 0)
    name = signal.Signals(number).name if number in {each.value for each in signal.Signals} else f"signal {number}"
    words = worker.last_words()
    memory = "; the system kills what needs more memory than there is" if name == "SIGKILL" else ""
    return ProcessLost(
        f"process {rank + 1} of {processes} was ended by {name}{memory}" + (f"; it said: {words}" if words else ""),
        fix=_GO_ON,
    )


def _error(facts: dict[str, Any] | None, worker: _Worker) -> PeftcliError:
    """What a worker's document says of its failure."""
    if facts is None:
        words = worker.last_words()
        return ProcessLost(
            f"a process ended with exit code {worker.code}" + (f": {words}" if words else ""), fix=_GO_ON
        )
    faults = [[fault["message"], fault["where"], fault["fix"]] for fault in facts["faults"]]
    code = int(facts["exit_code"])
    if facts["type"] == "Bug":
        return PeftcliError(facts["message"], where=facts["log"], fix="please report it with this file")
    where, fix = (faults[0][1], faults[0][2]) if len(faults) == 1 else (None, None)
    return error_from({**facts, "where": where, "fix": fix, "faults": faults, "signal_number": code - 128})
