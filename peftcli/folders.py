"""A folder is written as one file is: built aside under a temporary name, then renamed, which is its commit.

What a killed process leaves has a name that begins with `.tmp-`; the next writer of the same name removes it.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from peftcli import files, system
from peftcli.errors import StorageError

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1


class StagedFolder:
    """A folder under construction. Files are synced as they are written; `staged_folder` commits them together."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self.target = target
        self.files: dict[str, dict[str, Any]] = {}

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Writes `name` (may hold sub-folders) into the staged folder."""
        with files.storage_errors(self.target / name):
            files.disk.make_folder((self.path / name).parent)
            files.write_new_file(self.path / name, data)
        self.files[name] = {"bytes": len(memoryview(data).cast("B")), "sha256": hashlib.sha256(data).hexdigest()}

    def write_pieces(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """The same for a file that is not held: its bytes come a piece at a time."""
        digest, size = hashlib.sha256(), 0
        with files.storage_errors(self.target / name):
            files.disk.make_folder((self.path / name).parent)
            descriptor = files.disk.create(self.path / name)
            try:
                for piece in pieces:
                    digest.update(piece)
                    size += len(memoryview(piece).cast("B"))
                    files.write_all(descriptor, piece)
                files.disk.sync(descriptor)
            finally:
                os.close(descriptor)
        self.files[name] = {"bytes": size, "sha256": digest.hexdigest()}

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON document under `name`, as `to_json` has it."""
        self.write(name, files.to_json(value).encode("utf-8"))

    @contextlib.contextmanager
    def scratch(self, name: str = "scratch") -> Iterator[Path]:
        """A folder inside for a library that writes files by itself; when the block ends they become files of ours."""
        scratch = self.path / f"{files.TEMPORARY_PREFIX}{name}"
        with files.library_errors(self.target):
            files.disk.make_folder(scratch)
            yield scratch
            for source in sorted(path for path in scratch.rglob("*") if path.is_file() and not path.is_symlink()):
                self.copy(source, str(source.relative_to(scratch)))
                source.unlink()
            shutil.rmtree(scratch)

    def copy(self, source: Path, name: str) -> None:
        """Copies a file, however large, byte for byte, with our permissions."""
        digest = hashlib.sha256()
        with files.storage_errors(self.target / name), files.open_regular(source) as stream:
            files.disk.make_folder((self.path / name).parent)
            descriptor = files.disk.create(self.path / name)
            try:
                while piece := stream.read(files.CHUNK_BYTES):
                    digest.update(piece)
                    files.write_all(descriptor, piece)
                files.disk.sync(descriptor)
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
    with files.storage_errors(path), contextlib.ExitStack() as held:
        files.disk.make_folder(path.parent)
        _remove_leftovers(path)
        # beside the target, so that the rename stays within one file system
        staging = StagedFolder(files.temporary_name(path), path)
        files.disk.make_folder(staging.path)
        # held while the folder is built: another writer of the same name leaves it alone, even from another container
        held.enter_context(_lock_of(staging.path))
        try:
            yield staging
            if manifest is not None:
                body = {"format": MANIFEST_FORMAT, **manifest, "files": staging.files}
                # written last: a folder with a manifest is a folder that is whole
                files.write_new_file(staging.path / MANIFEST_NAME, files.to_json(body).encode("utf-8"))
            # a file's name is durable only when its folder is synced, each sub-folder by itself
            for folder in sorted({(staging.path / name).parent for name in staging.files} | {staging.path}):
                files.sync_folder(folder)
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
    for leftover in path.parent.glob(f"{files.TEMPORARY_PREFIX}{glob.escape(path.name)}-*"):
        if (
            files.is_temporary(leftover)
            and leftover.is_dir()
            and not leftover.is_symlink()
            and not _writer_lives(leftover)
        ):
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
        trash = files.temporary_name(path)
        files.disk.rename(path, trash)
    files.disk.rename(staging, path)
    files.sync_folder(path.parent)
    if trash is not None:
        files.remove_path(trash)


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Checks every file of a committed folder against its manifest and returns the manifest.

    Raises `ValueError` whose text says what is wrong: missing, size, hash, an extra file, a symlink.
    """
    manifest_path = folder / MANIFEST_NAME
    if not manifest_path.is_file() or manifest_path.is_symlink():
        raise ValueError(f"{MANIFEST_NAME} is missing")
    try:
        manifest = json.loads(files.read_bounded(manifest_path, limit_bytes=16 << 20))
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
        if files.sha256_file(path) != facts["sha256"]:
            raise ValueError(f"{name} is damaged: its SHA-256 differs")
    return dict(manifest)


def remove_folder(path: Path) -> None:
    """Removes a folder in two steps, so that a killed removal leaves no half of it under its name."""
    with files.storage_errors(path):
        trash = files.temporary_name(path)
        files.disk.rename(path, trash)
        files.remove_path(trash)


def exchange_folders(one: Path, other: Path, *, say: Callable[[str], None]) -> None:
    """Two folders take each other's place, at once where the file system can; else by three renames.

    `say` gets a line first about where `one` is meanwhile: a process that is killed just then leaves it there.
    """
    with files.storage_errors(one):
        if not files.disk.exchange(one, other):
            between = one.parent / f".{one.name}.old"
            say(f"note: {one} is kept at {between} until the new one is in place")
            files.disk.rename(one, between)
            try:
                files.disk.rename(other, one)
            # Ctrl-C too: both names stand for what they stood for before
            except BaseException:
                files.disk.rename(between, one)
                raise
            files.disk.rename(between, other)
        files.sync_folder(one.parent)
