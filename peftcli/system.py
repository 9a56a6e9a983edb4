"""What differs between operating systems, and between file systems: asked here, and nowhere else.

Linux has all of it. macOS lacks the set of allowed CPUs, Windows also file locks of this kind, folders that can be
opened, and a peak of memory; a network disk may have no locks.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any


def _module(name: str) -> ModuleType | None:
    """A module that not every system has, None there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _psutil() -> Any:
    """Comes with Accelerate; loaded only where the system itself does not answer."""
    return importlib.import_module("psutil")


def _flag(name: str) -> int:
    """A flag of `os.open`, nothing where the system has no such flag."""
    found: int = getattr(os, name, 0)
    return found


CLOSED_IN_CHILDREN = _flag("O_CLOEXEC") | _flag("O_BINARY")
"""What every descriptor of ours is opened with."""
AT_ONCE = _flag("O_NONBLOCK")
"""Opening a pipe does not wait for its other end."""
FOLDER = _flag("O_DIRECTORY")
FOLDERS_CAN_BE_OPENED = FOLDER != 0
"""Whether a folder's names can be synced and locked."""

DESCRIPTORS_ARE_INHERITED = os.name == "posix"
"""Whether a process can be started with an open descriptor of ours."""


def usable_cpus() -> int:
    """CPUs that this process may use; where that cannot be asked, those of the machine."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def total_memory_bytes() -> int:
    """Memory of the machine, whatever is in use."""
    ask = getattr(os, "sysconf", None)
    return ask("SC_PAGE_SIZE") * ask("SC_PHYS_PAGES") if ask is not None else int(_psutil().virtual_memory().total)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's `mallopt`."""
_LARGE, _SPARE = 8 << 20, 64 << 20


def give_back_freed_memory() -> None:
    """From now on a block of 8 MiB goes back to the system when it is freed, and 64 MiB of smaller ones are kept for the
    next. glibc by itself raises that size to 32 MiB as it sees blocks freed, and those stay with the process in pieces;
    were it lower, each piece of a file that is read would be handed out by the system page by page."""
    try:
        option = ctypes.CDLL(None).mallopt
    # other C libraries, and systems without one that can be asked, keep their own rule
    except (OSError, TypeError, AttributeError):
        return
    option(_MMAP_THRESHOLD, _LARGE)
    option(_TRIM_THRESHOLD, _SPARE)


def give_back_spare_memory() -> None:
    """What the C library holds of freed memory goes back now: small blocks that live on lie between large ones that do
    not, and the heap never shrinks by itself below the last of them."""
    # other C libraries have no such call
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory_bytes() -> int:
    """The most memory that this process has had so far; where nobody kept count, what it has now."""
    resource = _module("resource")
    if resource is None:
        found = _psutil().Process().memory_info()
        return int(getattr(found, "peak_wset", found.rss))
    # Linux counts in KiB, macOS in bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def hole_bytes(descriptor: int, size: int, *, most: int = 10_000) -> int:
    """Bytes of a file of `size` that were never written, in its first `most` holes; 0 where that cannot be asked."""
    to_data, to_hole = getattr(os, "SEEK_DATA", None), getattr(os, "SEEK_HOLE", None)
    if to_data is None or to_hole is None:
        return 0
    total = place = 0
    with contextlib.suppress(OSError):
        for _ in range(most):
            # the end of a file counts as the beginning of a hole
            start = os.lseek(descriptor, place, to_hole) if place < size else size
            if start >= size:
                break
            place = _next_data(descriptor, start, to_data, size)
            total += place - start
    return total


def _next_data(descriptor: int, place: int, to_data: int, size: int) -> int:
    try:
        return os.lseek(descriptor, place, to_data)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size


def process_lives(number: int) -> bool:
    """Whether a process of this machine has a number."""
    return Path("/proc", str(number)).exists() if Path("/proc/self").exists() else bool(_psutil().pid_exists(number))


class Lock(Enum):
    """What came of asking for a lock."""

    HELD = "held"
    """It is ours until the descriptor is closed, by us or by the end of the process."""
    IN_USE = "in use"
    UNKNOWN = "unknown"
    """System or file system has no locks."""


_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})


def try_lock(descriptor: int) -> Lock:
    """Asks for the one lock of an open file or folder, without waiting. Any other failure is an `OSError`."""
    fcntl = _module("fcntl")
    if fcntl is None:
        return Lock.UNKNOWN
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.IN_USE
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return Lock.UNKNOWN
        raise
    return Lock.HELD


_EXCHANGE = 2
"""RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS."""
_HERE = -100
"""AT_FDCWD: both paths are absolute."""


def exchange(one: Path, other: Path) -> bool:
    """Two paths of one file system take each other's place in one step; False where system or file system cannot.

    Any other failure is an `OSError`.
    """
    # only where folders are exchanged, which few commands do
    import ctypes

    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(*names, _EXCHANGE)
        else:
            failed = library.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE)
    except (AttributeError, TypeError, OSError):
        # a C library without the call, or a system without that library
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(one))


def signals(*names: str) -> tuple[signal.Signals, ...]:
    """Those of the named signals that the system has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


@contextlib.contextmanager
def computing_at_most(seconds: float, out_of_time: Callable[..., Any], *, patience: float) -> Iterator[None]:
    """Calls `out_of_time`, which raises, after so much computing inside the block.

    What the system does for the process, such as handing out memory, counts as computing. The call is heard between two
    steps of Python only: after `patience` times as long, then of its own work, the process ends. Where the system counts
    no computing, it ends by the clock.
    """
    if not hasattr(signal, "setitimer"):
        timer = threading.Timer(seconds * patience, os._exit, (1,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        return
    # processor time of user and system together: handing out memory is work of the system that the block caused
    signal.signal(signal.SIGPROF, out_of_time)
    # the default action of SIGVTALRM ends the process even inside C code, where no handler of Python runs
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    # again every tenth of the time, in case the first exception was caught by the code that is being bounded
    signal.setitimer(signal.ITIMER_PROF, seconds, seconds / 10)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds * patience)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


@contextlib.contextmanager
def looking_while_computing(look: Callable[[], None], *, every_seconds: float = 0.1) -> Iterator[None]:
    """Calls `look`, which may raise, after each stretch of computing inside the block, between two steps of Python.

    Only the main thread of a system that counts computing can do so; elsewhere nobody looks.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPROF, lambda *_: look())
    signal.setitimer(signal.ITIMER_PROF, every_seconds, every_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def end_after_computing(seconds: float) -> None:
    """This process ends when it has computed for so long, whatever it does; where the system counts no computing, by the
    clock."""
    if not hasattr(signal, "setitimer"):
        timer = threading.Timer(seconds, os._exit, (1,))
        timer.daemon = True
        timer.start()
        return
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def limit_memory(limit_bytes: int) -> None:
    """Bounds what this process may take of memory, and keeps it from leaving it on disk when it dies.

    Windows has no such bound, and macOS may refuse it.
    """
    resource = _module("resource")
    if resource is None:
        return
    # no core file: it would hold the memory of the process, secrets too
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    # macOS knows RLIMIT_AS and may refuse to set it
    except (OSError, ValueError):
        if sys.platform != "darwin":
            raise
