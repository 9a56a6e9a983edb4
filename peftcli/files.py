"""Every artefact is written here: to a temporary name, synced, then renamed, so that no reader ever sees half a file.

Two shapes: one file (`write_bytes`, `write_text`, `write_json`) and one folder (`staged_folder`), whose rename is the
commit. All system calls that change the disk go through `disk`, one object with few methods, so that a test can kill,
fill or break the disk at any of them. `append_line` is the one exception to the rename (metrics.jsonl).

What a killed process leaves has a name that begins with `.tmp-`; the next writer of the same name removes it.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from peftcli import system
from peftcli.errors import StorageError
from peftcli.visible import escaped_json

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1
TEMPORARY_PREFIX = ".tmp-"
_CHUNK_BYTES = 1 << 20


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
        written = disk.write(descriptor, view[:_CHUNK_BYTES])
        view = view[written:]


def _write_new_file(path: Path, data: bytes | memoryview) -> None:
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


def _temporary_name(path: Path) -> Path:
    return path.parent / f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}"


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes one file atomically and durably; the old content stays until the new one is complete."""
    with storage_errors(path):
        disk.make_folder(path.parent)
        temporary = _temporary_name(path)
        try:
            _write_new_file(temporary, data)
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


class StagedFolder:
    """A folder under construction. Files are synced as they are written; `staged_folder` commits them together."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self.target = target
        self.files: dict[str, dict[str, Any]] = {}

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Writes `name` (may hold sub-folders) into the staged folder."""
        with storage_errors(self.target / name):
            disk.make_folder((self.path / name).parent)
            _write_new_file(self.path / name, data)
        self.files[name] = {"bytes": len(memoryview(data).cast("B")), "sha256": hashlib.sha256(data).hexdigest()}

    def write_pieces(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """The same for a file that is not held: its bytes come a piece at a time."""
        digest, size = hashlib.sha256(), 0
        with storage_errors(self.target / name):
            disk.make_folder((self.path / name).parent)
            descriptor = disk.create(self.path / name)
            try:
                for piece in pieces:
                    digest.update(piece)
                    size += len(memoryview(piece).cast("B"))
                    write_all(descriptor, piece)
                disk.sync(descriptor)
            finally:
                os.close(descriptor)
        self.files[name] = {"bytes": size, "sha256": digest.hexdigest()}

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON document under `name`, as `to_json` has it."""
        self.write(name, to_json(value).encode("utf-8"))

    @contextlib.contextmanager
    def scratch(self, name: str = "scratch") -> Iterator[Path]:
        """A folder inside for a library that writes files by itself; when the block ends they become files of ours."""
        scratch = self.path / f"{TEMPORARY_PREFIX}{name}"
        with library_errors(self.target):
            disk.make_folder(scratch)
            yield scratch
            for source in sorted(path for path in scratch.rglob("*") if path.is_file() and not path.is_symlink()):
                self.copy(source, str(source.relative_to(scratch)))
                source.unlink()
            shutil.rmtree(scratch)

    def copy(self, source: Path, name: str) -> None:
        """Copies a file, however large, byte for byte, with our permissions."""
        digest = hashlib.sha256()
        with storage_errors(self.target / name), open_regular(source) as stream:
            disk.make_folder((self.path / name).parent)
            descriptor = disk.create(self.path / name)
            try:
                while piece := stream.read(_CHUNK_BYTES):
                    digest.update(piece)
                    write_all(descriptor, piece)
                disk.sync(descriptor)
                self.files[name] = {"bytes": stream.tell(), "sha256": digest.hexdigest()}
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def staged_folder(
    path: Path, *, manifest: dict[str, Any] | None = None, replace: bool = False
) -> Iterator[StagedFolder]:
    """Builds a folder aside and renames it into place when the block ends without an error.

    `manifest`: facts to write last, with name, size and SHA-256 of each file; None writes no manifest.
    `replace`: an existing folder at `path` is moved aside and removed after the commit; else it is a `StorageError`.
    """
    with storage_errors(path), contextlib.ExitStack() as held:
        disk.make_folder(path.parent)
        _remove_leftovers(path)
        # beside the target, so that the rename stays within one file system
        staging = StagedFolder(_temporary_name(path), path)
        disk.make_folder(staging.path)
        # held while the folder is built: another writer of the same name leaves it alone, even from another container
        held.enter_context(_lock_of(staging.path))
        try:
            yield staging
            if manifest is not None:
                body = {"format": MANIFEST_FORMAT, **manifest, "files": staging.files}
                # written last: a folder with a manifest is a folder that is whole
                _write_new_file(staging.path / MANIFEST_NAME, to_json(body).encode("utf-8"))
            # a file's name is durable only when its folder is synced, each sub-folder by itself
            for folder in sorted({(staging.path / name).parent for name in staging.files} | {staging.path}):
                sync_folder(folder)
            _commit(staging.path, path, replace=replace)
        # Ctrl-C and SystemExit too: nothing of a folder that was not committed stays
        except BaseException:
            shutil.rmtree(staging.path, ignore_errors=True)
            raise


@contextlib.contextmanager
def _lock_of(folder: Path) -> Iterator[bool]:
    """Holds a folder's lock, which ends with the process; False where it cannot be had (in use, or a network disk)."""
    if not system.FOLDERS_CAN_BE_OPENED:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY | system.FOLDER | system.CLOSED_IN_CHILDREN)
    try:
        held = system.try_lock(descriptor) is system.Lock.HELD
    except OSError:
        held = False
    try:
        yield held
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Removes what killed processes left of earlier tries to write the folder `path`, and nothing that is in use."""
    for leftover in path.parent.glob(f"{TEMPORARY_PREFIX}{glob.escape(path.name)}-*"):
        if is_temporary(leftover) and leftover.is_dir() and not leftover.is_symlink() and not _writer_lives(leftover):
            with contextlib.suppress(OSError), _lock_of(leftover) as unused:
                if unused:
                    shutil.rmtree(leftover)


def _writer_lives(temporary: Path) -> bool:
    """Whether a process of this machine has the number that is in a temporary name."""
    number = temporary.name.split("-")[-2]
    # a number that cannot be read may be anybody's: it counts as living
    return not number.isdecimal() or system.process_lives(int(number))


def _commit(staging: Path, path: Path, *, replace: bool) -> None:
    if path.exists() and not replace:
        raise StorageError("the folder already exists", where=str(path), fix="choose another one, or remove it")
    trash = None
    # two renames, as no system call replaces a folder that is not empty; a kill between them leaves both, under `.tmp-`
    if path.exists():
        trash = _temporary_name(path)
        disk.rename(path, trash)
    disk.rename(staging, path)
    sync_folder(path.parent)
    if trash is not None:
        remove_path(trash)


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Checks every file of a committed folder against its manifest and returns the manifest.

    Raises `ValueError` whose text says what is wrong: missing, size, hash, an extra file, a symlink.
    """
    manifest_path = folder / MANIFEST_NAME
    if not manifest_path.is_file() or manifest_path.is_symlink():
        raise ValueError(f"{MANIFEST_NAME} is missing")
    try:
        manifest = json.loads(read_bounded(manifest_path, limit_bytes=16 << 20))
        names = manifest["files"]
        if manifest["format"] != MANIFEST_FORMAT or not isinstance(names, dict):
            raise ValueError(f"{MANIFEST_NAME} has an unknown format")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{MANIFEST_NAME} is damaged") from error
    # links count as files: a link to a folder could bring anything in
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
    for extra in sorted(present - set(names) - {MANIFEST_NAME}):
        raise ValueError(f"{extra} does not belong here")
    for name, facts in names.items():
        path = folder / name
        # `lstat`, which follows no link
        if name not in present or not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError(f"{name} is missing")
        if not isinstance(facts, dict) or set(facts) != {"bytes", "sha256"}:
            raise ValueError(f"{MANIFEST_NAME} is damaged")
        if path.stat().st_size != facts["bytes"]:
            raise ValueError(f"{name} has {path.stat().st_size} bytes, not {facts['bytes']}")
        if sha256_file(path) != facts["sha256"]:
            raise ValueError(f"{name} is damaged: its SHA-256 differs")
    return dict(manifest)


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


def remove_folder(path: Path) -> None:
    """Removes a folder in two steps, so that a killed removal leaves no half of it under its name."""
    with storage_errors(path):
        trash = _temporary_name(path)
        disk.rename(path, trash)
        remove_path(trash)


def exchange_folders(one: Path, other: Path, *, say: Callable[[str], None]) -> None:
    """Two folders take each other's place, at once where the file system can; else by three renames.

    `say` gets a line first about where `one` is meanwhile: a process that is killed just then leaves it there.
    """
    with storage_errors(one):
        if not disk.exchange(one, other):
            between = one.parent / f".{one.name}.old"
            say(f"note: {one} is kept at {between} until the new one is in place")
            disk.rename(one, between)
            try:
                disk.rename(other, one)
            # Ctrl-C too: both names stand for what they stood for before
            except BaseException:
                disk.rename(between, one)
                raise
            disk.rename(between, other)
        sync_folder(one.parent)


def json_line(value: Any) -> str:
    """One JSON object on one line, newline included."""
    return escaped_json(json.dumps(value, ensure_ascii=False, allow_nan=False)) + "\n"
