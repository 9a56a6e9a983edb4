"""The lock of a run folder: one process writes into it at a time.

Our own in place of the package filelock: what killed owners left is cleared under the same lock, and where the file
system has no locks a file names the owner, so that a dead one of this machine is passed over and the user is warned.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftcli import files, system
from peftcli.errors import StorageError
from peftcli.streams import tell

LOCK_NAMES = (".lock", ".lock-owner")
"""What a run folder holds for its lock: the file that is locked, and where there are no locks who owns the folder."""


@contextlib.contextmanager
def owned_folder(folder: Path) -> Iterator[None]:
    """Holds the lock of a run folder; a second process gets `StorageError`."""
    with files.storage_errors(folder):
        files.disk.make_folder(folder)
        # opened and never removed: unlinking a file that others may be locking would give two processes a lock each
        descriptor = os.open(folder / LOCK_NAMES[0], os.O_RDWR | os.O_CREAT | system.CLOSED_IN_CHILDREN, 0o666)
    try:
        with files.storage_errors(folder), contextlib.ExitStack() as marked:
            found = system.try_lock(descriptor)
            if found is system.Lock.IN_USE:
                raise StorageError(
                    "another process owns this run folder",
                    where=str(folder),
                    fix="wait for it, or choose another output",
                )
            if found is system.Lock.UNKNOWN:
                marked.enter_context(_owner_file(folder))
            # what killed owners left is cleared only once the folder is ours
            _clear_owned(folder)
            marked_until_the_end = marked.pop_all()
        with marked_until_the_end:
            yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _owner_file(folder: Path) -> Iterator[None]:
    """Owns a folder by a file that names machine and process, where the file system has no locks.

    Unlike a lock it outlives a killed process: one of this machine that no longer lives is passed over.
    """
    path = folder / LOCK_NAMES[1]
    me = {"machine": platform.node(), "process": os.getpid()}
    try:
        descriptor = files.disk.create(path)
    except FileExistsError:
        _require_gone(path, me["machine"])
        files.disk.remove_file(path)
        # two processes may find the same dead owner: `create` fails for the one that comes second
        descriptor = files.disk.create(path)
    try:
        files.write_all(descriptor, files.json_line(me).encode("utf-8"))
    finally:
        os.close(descriptor)
    tell(f"warning: the file system has no locks; {path} keeps other processes out of this run")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _require_gone(path: Path, machine: Any) -> None:
    """The owner of a run folder is a process of this machine that has ended; else `StorageError`."""
    try:
        owner = json.loads(path.read_bytes())
        here, number = owner["machine"] == machine, int(owner["process"])
    except (ValueError, KeyError, TypeError):
        # killed while it wrote its name
        return
    if here and not system.process_lives(number):
        return
    raise StorageError(
        f"process {number} of {'this' if here else 'another'} machine owns this run folder",
        where=str(path),
        fix="wait for it, or choose another output; if it has ended, remove this file",
    )


def _clear_owned(folder: Path) -> None:
    """Removes what killed owners of a run folder left in it."""
    for leftover in sorted([*folder.glob(f"{files.TEMPORARY_PREFIX}*"), *folder.glob(f"*/{files.TEMPORARY_PREFIX}*")]):
        if not files.is_temporary(leftover) or leftover.is_symlink():
            continue
        files.remove_path(leftover)
