"""Every file is written here: to a temporary name, synced, then renamed, so that no reader ever sees half of it.

All system calls that change the disk, those of `folders` too, go through `disk`, one object with few methods, so that a
test can kill, fill or break the disk at any of them. `append_line` is the one exception to the rename (metrics.jsonl).

What a killed process leaves has a name that begins with `.tmp-`; the next writer of the same name removes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from peftcli import system
from peftcli.errors import StorageError
from peftcli.visible import escaped_json

TEMPORARY_PREFIX = ".tmp-"
CHUNK_BYTES = 1 << 20
"""Read or written at once: little enough to be held, and enough that the number of calls costs nothing."""


class Disk:
    """The system calls that change the disk. A test replaces `peftcli.files.disk` by a subclass that fails."""

    def create(self, path: Path) -> int:
        """A new file opened for writing; `FileExistsError` where the name is taken."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | system.CLOSED_IN_CHILDREN, 0o666)

    def open_append(self, path: Path) -> int:
        """A file opened for writing at its end, made where it is missing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | system.CLOSED_IN_CHILDREN, 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Writes some or all of the bytes and returns how many."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Waits until what was written is on the disk."""
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Gives a file or folder another name at once; a file that had the name is replaced."""
        os.replace(source, target)

    def remove_file(self, path: Path) -> None:
        """Removes a file or a link."""
        os.unlink(path)

    def remove_tree(self, path: Path) -> None:
        """Removes a folder with all that is in it."""
        shutil.rmtree(path)

    def remove_empty(self, path: Path) -> None:
        """Removes a folder in which nothing is."""
        path.rmdir()

    def exchange(self, one: Path, other: Path) -> bool:
        """Two folders take each other's place at once; False where the file system cannot do that."""
        return system.exchange(one, other)

    def make_folder(self, path: Path) -> None:
        """Makes a folder and those above it, where they are missing."""
        path.mkdir(parents=True, exist_ok=True)


disk = Disk()


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Translates `OSError` into a `StorageError` that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        raise _storage_error(error, path) from error


def _storage_error(error: OSError, path: Path) -> StorageError:
    where = str(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError("disk full", where=where, fix="free some space; `peft resume` continues a run")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"no permission to write: {error.strerror}", where=where, fix="choose another output folder"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return StorageError("a file is in the way of a folder", where=where, fix="choose another output folder")
    return StorageError(f"cannot write: {error.strerror or error}", where=where, fix="check the disk")


@contextlib.contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """The same for a file that is read."""
    try:
        yield
    except OSError as error:
        denied = error.errno in (errno.EACCES, errno.EPERM)
        reason = "no permission to read" if denied else f"cannot read: {error.strerror or error}"
        raise StorageError(reason, where=str(path), fix="check the path and its permissions") from error


# as Rust shows an error of the system to people, and to its programmers (safetensors 0.5)
_SYSTEM_ERROR = re.compile(r"\(os error (?P<shown>\d+)\)|\bOs \{ code: (?P<listed>\d+),")


@contextlib.contextmanager
def library_errors(path: Path) -> Iterator[None]:
    """Translates what libraries written in Rust raise when the disk fails: plain exceptions that quote the system."""
    with storage_errors(path):
        try:
            yield
        except Exception as error:
            found = _SYSTEM_ERROR.search(str(error))
            if found is None or isinstance(error, OSError):
                raise
            number = int(found[found.lastgroup or 0])
            # an `OSError` again: `storage_errors`, around this, says what it means
            raise OSError(number, os.strerror(number)) from error


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Writes everything to an open file, however little the system takes at once."""
    view = memoryview(data).cast("B")
    while view:
        # a bounded piece each time: a short write is legal and goes on where it stopped
        written = disk.write(descriptor, view[:CHUNK_BYTES])
        view = view[written:]


def write_new_file(path: Path, data: bytes | memoryview) -> None:
    """Writes and syncs a file whose name is free; its name is durable once the folder is synced."""
    descriptor = disk.create(path)
    try:
        write_all(descriptor, data)
        disk.sync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable (a rename is durable only once its parent is synced)."""
    if not system.FOLDERS_CAN_BE_OPENED:
        return
    descriptor = os.open(path, os.O_RDONLY | system.FOLDER)
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)


_TEMPORARY_NAME = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}.+-\d+-[0-9a-f]{{8}}")


def is_temporary(path: Path) -> bool:
    """Whether a name is one that we give to what is being written: somebody's own `.tmp-` files have others."""
    return _TEMPORARY_NAME.fullmatch(path.name) is not None


def temporary_name(path: Path) -> Path:
    """A name beside `path` for what is not whole yet, with the number of the process that writes it."""
    return path.parent / f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}"


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes one file atomically and durably; the old content stays until the new one is complete."""
    with storage_errors(path):
        disk.make_folder(path.parent)
        temporary = temporary_name(path)
        try:
            write_new_file(temporary, data)
            disk.rename(temporary, path)
        # whatever ends the writing, Ctrl-C too: no half file is left, and the exception goes on
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def to_json(value: Any) -> str:
    """JSON as we write it: two spaces, keys in their order, a final newline, never NaN, no unseen character."""
    return escaped_json(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON document atomically. Non-finite numbers raise `ValueError`: they are never facts."""
    write_text(path, to_json(value))


def append_line(path: Path, line: str) -> None:
    """Appends one line in a single write call (metrics.jsonl); a torn last line is the reader's to ignore."""
    with storage_errors(path):
        descriptor = disk.open_append(path)
        try:
            write_all(descriptor, (line + "\n").encode("utf-8"))
        finally:
            os.close(descriptor)


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file for reading. A pipe, a device or a folder is an `OSError` at once: it may never end."""
    descriptor = os.open(path, os.O_RDONLY | system.AT_ONCE | system.CLOSED_IN_CHILDREN)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


_GROWTH_BYTES = 1 << 16


def read_bounded(path: Path, *, limit_bytes: int) -> bytes:
    """Reads a file of at most `limit_bytes`; a larger one is a `StorageError`, so that no file can exhaust memory."""
    with reading_errors(path), open_regular(path) as stream:
        # asked for as many bytes as the limit, `read` takes that much memory at once, whatever the file holds
        data = stream.read(min(limit_bytes, os.fstat(stream.fileno()).st_size) + 1)
        while len(data) <= limit_bytes and (grown := stream.read(min(limit_bytes + 1 - len(data), _GROWTH_BYTES))):
            data += grown
    # a file may grow while it is read (a log, somebody's editor): the limit holds for that too
    if len(data) > limit_bytes:
        raise StorageError(f"the file is larger than {limit_bytes:,} bytes", where=str(path))
    return data


def sha256_bytes(data: bytes | memoryview) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def free_bytes(path: Path) -> int:
    """Free space for this user on the file system of the nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def remove_path(path: Path) -> None:
    """Removes a folder with all that is in it, or a file; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        disk.remove_tree(path)
    else:
        disk.remove_file(path)


def names_a_path(value: str, folder: Path) -> bool:
    """Whether a base or source is a path (else a Hub id): it starts with / ./ ../ ~, has more than one slash, or its
    first part exists beside the recipe in `folder`."""
    if value.startswith(("/", "./", "../", "~")) or value in (".", "..") or value.count("/") > 1:
        return True
    return (folder / value.split("/", 1)[0]).exists()


def json_line(value: Any) -> str:
    """One JSON object on one line, newline included."""
    return escaped_json(json.dumps(value, ensure_ascii=False, allow_nan=False)) + "\n"
