"""Where rows come from: files, folders, globs, saved datasets, the Hub, and the built-in data."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from peftcli import files
from peftcli.data.config import SourceConfig
from peftcli.data.faults import FaultLog
from peftcli.data.names import nearest
from peftcli.data.readers.base import Chunk
from peftcli.data.readers.compressed import SUFFIXES, unreadable
from peftcli.data.readers.containers import check_kind, check_start, is_by_row, is_data_file, read_file
from peftcli.data.readers.verified import HashedFile, hash_file
from peftcli.errors import DataError

BUILTIN_PREFIX = "builtin:"
"""In front of the name of a data set that ships with peftcli."""
_BUILTIN_FOLDER = Path(__file__).parent / "builtin"
_GLOB_CHARACTERS = "*?["
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class FileFacts:
    """One input: its path (or Hub name), size, and a hash of its content."""

    path: str
    bytes: int
    sha256: str


class RowSource(Protocol):
    """Something that yields chunks of rows, file by file."""

    name: str

    @property
    def names(self) -> Sequence[str]:
        """How each file is named in messages and origins."""

    def facts(self) -> list[FileFacts]:
        """What pins the content of each file."""

    def by_row(self, file: int) -> bool:
        """Whether places in that file are row numbers rather than lines."""

    def chunks(self, file: int, faults: FaultLog, after: int = 0) -> Iterator[Chunk]:
        """The rows of one file after line (or row) `after`, in order."""


class LocalFiles:
    """Data files on disk. What is read of a file is what was hashed, else it is a `DataError`."""

    def __init__(self, name: str, paths: Sequence[Path], names: Sequence[str]) -> None:
        self.name = name
        self.paths = tuple(paths)
        self.names: Sequence[str] = tuple(names)
        self._hashed: dict[Path, HashedFile] = {}
        self._seen: dict[Path, tuple[int, int]] = {}

    def facts(self) -> list[FileFacts]:
        """Path, size and hash of each file; `DataError` for what is no regular file of a known kind."""
        found = []
        for path, name in zip(self.paths, self.names, strict=True):
            check_kind(path, name)
            if path.exists() and not path.is_file():
                # a pipe or device would never end
                raise DataError("not a regular file", where=name, fix="write the rows into a file")
            try:
                check_start(path, name)
                self._seen[path] = _stamp(path)
                self._hashed[path] = hashed = hash_file(path)
                found.append(FileFacts(str(path), hashed.num_bytes, hashed.sha256))
            except OSError as error:
                raise unreadable(error, name) from error
        return found

    def by_row(self, file: int) -> bool:
        """Whether the kind of the file has rows and no lines."""
        return is_by_row(self.paths[file])

    def chunks(self, file: int, faults: FaultLog, after: int = 0) -> Iterator[Chunk]:
        """The rows of a file; `DataError` where it is not any more what was hashed."""
        path = self.paths[file]
        yield from read_file(path, self.names[file], faults, after, self._hashed.get(path))
        # every byte was the hashed one; a file that somebody writes to is still told, before a run goes on with its start
        if path in self._seen and _stamp(path) != self._seen[path]:
            raise DataError("the file changed while it was read", where=self.names[file], fix="run again")


def _stamp(path: Path) -> tuple[int, int]:
    # time and size: a change of either is a change that the hash may have missed
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def is_local(path: str, folder: Path) -> bool:
    """Whether a source is a path: by the rule for every path of a recipe, or by a glob sign or data file suffix."""
    if path.startswith(BUILTIN_PREFIX):
        return False
    named_like_file = is_data_file(Path(path)) or Path(path).suffix in SUFFIXES
    return files.names_a_path(path, folder) or named_like_file or any(sign in path for sign in _GLOB_CHARACTERS)


def resolve(source: SourceConfig, folder: Path) -> RowSource:
    """The rows that a source names, relative to the recipe's `folder`. Nothing but names is read yet.

    Raises `DataError` when there is nothing there, `HubError` (on reading) when the Hub cannot be reached.
    """
    if source.path.startswith(BUILTIN_PREFIX):
        return _builtin(source)
    if not is_local(source.path, folder):
        # a circle: sources of `datasets` are sources of this file's kind
        from peftcli.data.datasets_source import HubDataset

        return HubDataset(source.path, source.split or "train", source.revision)
    if source.revision is not None:
        raise DataError(f"{source.path} is a path and has no `revision`", fix="leave `revision` out")
    path = folder / Path(source.path).expanduser()
    if path.is_dir():
        return _folder(source, path)
    if source.split is not None:
        raise DataError(f"{source.path} is a file and has no splits", fix="leave `split` out")
    if path.exists():
        return LocalFiles(source.path, [path], [source.path])
    if any(sign in source.path for sign in _GLOB_CHARACTERS):
        return _glob(source, folder)
    raise _missing(source.path, path)


def _missing(name: str, path: Path) -> DataError:
    parent = path.parent
    if not parent.is_dir():
        return DataError(f"no such file: {name}", where=str(path), fix=f"check the path; there is no folder {parent}")
    beside = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() or is_data_file(entry))
    listed = f"check the name; the folder holds {_some(beside)}"
    return DataError(f"no such file: {name}{nearest(path.name, beside)}", where=str(path), fix=listed)


def _some(names: list[str]) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more if names else "no data files"


def _glob(source: SourceConfig, folder: Path) -> LocalFiles:
    pattern = str(Path(source.path).expanduser())
    found = sorted(glob.glob(pattern, root_dir=folder, recursive=True))
    # folders match a pattern too, and hold no rows themselves
    names = [name for name in found if (folder / name).is_file()]
    if not names:
        raise DataError(f"no file matches {source.path}", where=str(folder), fix="check the pattern")
    return LocalFiles(source.path, [folder / name for name in names], names)


def _folder(source: SourceConfig, path: Path) -> RowSource:
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        # the same circle
        from peftcli.data.datasets_source import SavedDataset

        return SavedDataset(source.path, path, source.split)
    scripts = sorted(file.name for file in path.glob("*.py"))
    if scripts:
        raise DataError(
            f"the folder holds a dataset script ({scripts[0]}), which is never run",
            where=str(path),
            fix="name the data files themselves, or a glob: folder/*.jsonl",
        )
    # sorted: file systems list in an order of their own, and the order of rows decides the run
    found = sorted(file for file in path.rglob("*") if file.is_file() and is_data_file(file) and _visible(file, path))
    if not found:
        raise DataError(
            f"no data files in {source.path}", where=str(path), fix="give a folder with .jsonl, .parquet, ..."
        )
    chosen = _of_split(found, path, source)
    return LocalFiles(source.path, chosen, [f"{source.path.rstrip('/')}/{file.relative_to(path)}" for file in chosen])


def _visible(file: Path, folder: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def _of_split(found: list[Path], folder: Path, source: SourceConfig) -> list[Path]:
    """The files of the wanted split, by their names as `datasets` does; all where no name says a split."""
    splits = {file: _split_of(file, folder) for file in found}
    known = sorted({split for split in splits.values() if split})
    if not known and source.split is None:
        return found
    wanted = source.split or "train"
    chosen = [file for file, split in splits.items() if split == wanted]
    if not chosen:
        raise DataError(
            f"{source.path} has no split {wanted!r}{nearest(wanted, known)}",
            where=str(folder),
            fix=f"its splits: {', '.join(known) or 'none'}",
        )
    return chosen


def _split_of(file: Path, folder: Path) -> str | None:
    for part in (file.name, *reversed(file.relative_to(folder).parts[:-1])):
        # whole words between dots, dashes and underscores: `training-data.jsonl` counts, `constrain.jsonl` does not
        words = part.lower().replace(".", "-").replace("_", "-").split("-")
        for split, names in _SPLIT_WORDS.items():
            if any(name in words for name in names):
                return split
    return None


def builtin_names() -> list[str]:
    """Names of the data sets that ship with the package."""
    if not _BUILTIN_FOLDER.is_dir():
        return []
    return sorted(entry.name for entry in _BUILTIN_FOLDER.iterdir() if (entry / "train.jsonl").is_file())


def _builtin(source: SourceConfig) -> LocalFiles:
    """`builtin:NAME` is its training part; `builtin:NAME/validation` (or `split: validation`) the other."""
    name, _, part = source.path.removeprefix(BUILTIN_PREFIX).partition("/")
    part = part or source.split or "train"
    known = builtin_names()
    if name not in known:
        raise DataError(
            f"no built-in data {name!r}{nearest(name, known)}", fix=f"built in: {', '.join(known) or 'none'}"
        )
    path = _BUILTIN_FOLDER / name / f"{part}.jsonl"
    if not path.is_file():
        parts = sorted(file.stem for file in (_BUILTIN_FOLDER / name).glob("*.jsonl"))
        raise DataError(f"built-in data {name!r} has no part {part!r}", fix=f"parts: {', '.join(parts)}")
    return LocalFiles(source.path, [path], [f"{BUILTIN_PREFIX}{name}/{part}.jsonl"])
