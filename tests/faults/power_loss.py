"""A disk that loses its power: when the process dies, what was never synced is gone with it.

Of a file only what it held at its last sync is left. With `NAMES` a renaming is undone as well, where the folder was not
synced behind it: what a file system promises about names is no more than that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from faulty_disk import FaultyDisk

POWER_LOSS = "kill, and what was not synced is gone"
POWER_LOSS_NAMES = "kill, and what was not synced is gone, names too"


class PowerLossDisk(FaultyDisk):
    """Loses its power before the `point`-th call."""

    def __init__(self, kind: str = "", point: int = -1) -> None:
        super().__init__(kind, point)
        self._open: dict[tuple[int, int], int] = {}
        self._safe: dict[tuple[int, int], int] = {}
        self._renamed: list[tuple[Path, Path, Path | None]] = []
        self._kept = Path(tempfile.mkdtemp(prefix="power-loss-"))

    def _pass(self, call: str) -> bool:
        if len(self.calls) == self.point:
            self._lose()
        return super()._pass(call)

    def _lose(self) -> None:
        for key, descriptor in self._open.items():
            os.ftruncate(descriptor, self._safe[key])
        if self.kind == POWER_LOSS_NAMES:
            for source, target, before in reversed(self._renamed):
                # what has been removed since has no name to go back to
                with contextlib.suppress(OSError):
                    os.rename(target, source)
                    if before is not None:
                        os.rename(before, target)
        shutil.rmtree(self._kept, ignore_errors=True)
        os.kill(os.getpid(), 9)

    def _watch(self, descriptor: int, safe: int) -> int:
        found = os.fstat(descriptor)
        key = found.st_dev, found.st_ino
        if key not in self._open:
            # the descriptor of ours stays, so that the file is found under whatever name
            self._open[key], self._safe[key] = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR), safe
        return descriptor

    def create(self, path: Path) -> int:
        return self._watch(super().create(path), 0)

    def open_append(self, path: Path) -> int:
        held = path.stat().st_size if path.exists() else 0
        return self._watch(super().open_append(path), held)

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            folder = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            self._renamed = [entry for entry in self._renamed if entry[1].parent != folder]
        elif (found.st_dev, found.st_ino) in self._safe:
            self._safe[found.st_dev, found.st_ino] = found.st_size

    def rename(self, source: Path, target: Path) -> None:
        before = None
        if target.is_file():
            before = self._kept / str(len(self.calls))
            try:
                os.link(target, before)
            except OSError:
                before = None
        super().rename(source, target)
        self._renamed.append((source.absolute(), target.absolute(), before))
