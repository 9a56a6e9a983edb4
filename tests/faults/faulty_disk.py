"""A disk that fails at one chosen call, in one of several ways; without a point it only counts its calls."""

from __future__ import annotations

import errno
import os
import signal
import stat
from pathlib import Path

from peftcli import files

KILL_BEFORE = "kill before"
KILL_HALFWAY = "kill halfway"
FULL = "full from here on"
BROKEN_ONCE = "broken once"
BROKEN = "broken from here on"
SHORT_WRITE = "short write"
KINDS = (KILL_BEFORE, KILL_HALFWAY, FULL, BROKEN_ONCE, BROKEN, SHORT_WRITE)
_NEEDS_ROOM = ("create", "append", "write", "sync", "make folder")


class FaultyDisk(files.Disk):
    """Fails at the `point`-th call (from 0). `calls` names every call so far."""

    def __init__(self, kind: str = "", point: int = -1) -> None:
        self.kind, self.point = kind, point
        self.calls: list[str] = []

    def points(self, kind: str) -> list[int]:
        """The calls that a kind of fault applies to, of a run that this disk has counted."""
        wanted = {FULL: _NEEDS_ROOM, SHORT_WRITE: ("write",)}.get(kind)
        return [number for number, call in enumerate(self.calls) if wanted is None or call in wanted]

    def _pass(self, call: str) -> bool:
        """Counts one call and fails before it; True where the call itself is to be done by half."""
        now = len(self.calls)
        self.calls.append(call)
        reached, here = 0 <= self.point <= now, now == self.point
        if here and self.kind == KILL_BEFORE:
            _die()
        if (here and self.kind == BROKEN_ONCE) or (reached and self.kind == BROKEN):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if reached and self.kind == FULL and call in _NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return here and self.kind in (KILL_HALFWAY, SHORT_WRITE)

    def _done(self, half: bool) -> None:
        if half:
            _die()

    def create(self, path: Path) -> int:
        half = self._pass("create")
        descriptor = super().create(path)
        self._done(half)
        return descriptor

    def open_append(self, path: Path) -> int:
        half = self._pass("append")
        descriptor = super().open_append(path)
        self._done(half)
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        half = self._pass("write")
        written = super().write(descriptor, data[: max(1, len(data) // 2)] if half else data)
        self._done(half and self.kind == KILL_HALFWAY)
        return written

    def sync(self, descriptor: int) -> None:
        half = self._pass("sync")
        if half and stat.S_ISREG(os.fstat(descriptor).st_mode):
            # what a power cut may leave of a file that was never synced
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        self._done(half)

    def rename(self, source: Path, target: Path) -> None:
        half = self._pass("rename")
        super().rename(source, target)
        self._done(half)

    def remove_file(self, path: Path) -> None:
        half = self._pass("remove file")
        super().remove_file(path)
        self._done(half)

    def remove_tree(self, path: Path) -> None:
        half = self._pass("remove folder")
        if half:
            os.unlink(next(file for file in path.rglob("*") if file.is_file()))
            _die()
        super().remove_tree(path)

    def remove_empty(self, path: Path) -> None:
        half = self._pass("remove empty")
        super().remove_empty(path)
        self._done(half)

    def exchange(self, one: Path, other: Path) -> bool:
        half = self._pass("exchange")
        done = super().exchange(one, other)
        self._done(half)
        return done

    def make_folder(self, path: Path) -> None:
        half = self._pass("make folder")
        super().make_folder(path)
        self._done(half)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
