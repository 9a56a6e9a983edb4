"""Every artefact is written here: to a temporary name, synced, then renamed, so that no reader ever sees half a file.

Two shapes: one file (`write_bytes`, `write_text`, `write_json`) and one folder (`staged_folder`), whose rename is the
commit. All system calls that change the disk go through `disk`, one object with few methods, so that a test can kill,
fill or break the disk at any of them. `append_line` is the one exception to the rename (metrics.jsonl).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftcli.errors import StorageError

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1
TEMPORARY_PREFIX = ".tmp-"
_CHUNK_BYTES = 1 << 20


class Disk:
    """The system calls that change the disk. A test replaces `peftcli.files.disk` by a subclass that fails."""

    def create(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def open_append(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def remove_file(self, path: Path) -> None:
        os.unlink(path)

    def remove_tree(self, path: Path) -> None:
        shutil.rmtree(path)

    def make_folder(self, path: Path) -> None:
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
        return StorageError("disk full", where=where, fix="free some space, then `peft resume` the run")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"no permission to write: {error.strerror}", where=where, fix="choose another output folder"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return StorageError("a file is in the way of a folder", where=where, fix="choose another output folder")
    return StorageError(f"cannot write: {error.strerror or error}", where=where, fix="check the disk")


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    while view:
        # a bounded piece each time: a short write is legal and goes on where it stopped
        written = disk.write(descriptor, view[:_CHUNK_BYTES])
        view = view[written:]


def _write_new_file(path: Path, data: bytes | memoryview) -> None:
    descriptor = disk.create(path)
    try:
        _write_all(descriptor, data)
        disk.sync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable (a rename is durable only once its parent is synced)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)


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
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def to_json(value: Any) -> str:
    """JSON as we write it: two spaces, keys in their order, a final newline, never NaN."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON document atomically. Non-finite numbers raise `ValueError`: they are never facts."""
    write_text(path, to_json(value))


def append_line(path: Path, line: str) -> None:
    """Appends one line in a single write call (metrics.jsonl); a torn last line is the reader's to ignore."""
    with storage_errors(path):
        descriptor = disk.open_append(path)
        try:
            _write_all(descriptor, (line + "\n").encode("utf-8"))
        finally:
            os.close(descriptor)


class StagedFolder:
    """A folder under construction. Files are synced as they are written; `staged_folder` commits them together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, dict[str, Any]] = {}

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Writes `name` (may hold sub-folders) into the staged folder."""
        target = self.path / name
        disk.make_folder(target.parent)
        _write_new_file(target, data)
        self.files[name] = {"bytes": len(memoryview(data).cast("B")), "sha256": hashlib.sha256(data).hexdigest()}

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, to_json(value).encode("utf-8"))

    def adopt(self, folder: Path) -> None:
        """Copies every regular file of a scratch folder (what a library wrote by itself) through this one."""
        for source in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
            self.write(str(source.relative_to(folder)), source.read_bytes())


@contextlib.contextmanager
def staged_folder(
    path: Path, *, manifest: dict[str, Any] | None = None, replace: bool = False
) -> Iterator[StagedFolder]:
    """Builds a folder aside and renames it into place when the block ends without an error.

    `manifest`: facts to write last, with name, size and SHA-256 of each file; None writes no manifest.
    `replace`: an existing folder at `path` is moved aside and removed after the commit; else it is a `StorageError`.
    """
    with storage_errors(path):
        disk.make_folder(path.parent)
        staging = StagedFolder(_temporary_name(path))
        disk.make_folder(staging.path)
        try:
            yield staging
            if manifest is not None:
                body = {"format": MANIFEST_FORMAT, **manifest, "files": staging.files}
                _write_new_file(staging.path / MANIFEST_NAME, to_json(body).encode("utf-8"))
            for folder in sorted({(staging.path / name).parent for name in staging.files} | {staging.path}):
                sync_folder(folder)
            _commit(staging.path, path, replace=replace)
        except BaseException:
            shutil.rmtree(staging.path, ignore_errors=True)
            raise


def _commit(staging: Path, path: Path, *, replace: bool) -> None:
    if path.exists() and not replace:
        raise StorageError("the folder exists already", where=str(path), fix="choose another one, or remove it")
    trash = None
    if path.exists():
        trash = _temporary_name(path)
        disk.rename(path, trash)
    disk.rename(staging, path)
    sync_folder(path.parent)
    if trash is not None:
        disk.remove_tree(trash)


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
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
    for extra in sorted(present - set(names) - {MANIFEST_NAME}):
        raise ValueError(f"{extra} does not belong here")
    for name, facts in names.items():
        path = folder / name
        if name not in present or path.is_symlink():
            raise ValueError(f"{name} is missing")
        if not isinstance(facts, dict) or set(facts) != {"bytes", "sha256"}:
            raise ValueError(f"{MANIFEST_NAME} is damaged")
        if path.stat().st_size != facts["bytes"]:
            raise ValueError(f"{name} has {path.stat().st_size} bytes, not {facts['bytes']}")
        if sha256_file(path) != facts["sha256"]:
            raise ValueError(f"{name} is damaged: its SHA-256 differs")
    return dict(manifest)


def read_bounded(path: Path, *, limit_bytes: int) -> bytes:
    """Reads a file of at most `limit_bytes`; a larger one is a `StorageError`, so that no file can exhaust memory."""
    with storage_errors(path), path.open("rb") as stream:
        data = stream.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise StorageError(f"the file is larger than {limit_bytes:,} bytes", where=str(path))
    return data


def sha256_bytes(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def free_bytes(path: Path) -> int:
    """Free space for this user on the file system of the nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


@contextlib.contextmanager
def owned_folder(folder: Path) -> Iterator[None]:
    """Holds the lock of a run folder: one process writes into it at a time; a second one gets `StorageError`."""
    with storage_errors(folder):
        disk.make_folder(folder)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                "another process owns this run folder", where=str(folder), fix="wait for it, or choose another output"
            ) from error
        yield
    finally:
        os.close(descriptor)


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
        disk.remove_tree(trash)


def json_line(value: Any) -> str:
    """One JSON object on one line, newline included."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
