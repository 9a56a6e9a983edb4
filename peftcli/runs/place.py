"""The place of a new run: free, or still held by an older run until the new one has begun well.

    NAME         the older run, as it was, until the exchange
    .NAME.new    the new one, until its first checkpoint; then the older one, until it is removed

The exchange is one step of the file system: whatever stops the process, NAME holds a whole run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from peftcli import files, folders
from peftcli.errors import StorageError
from peftcli.recipe import LoadedRecipe, flat_recipe
from peftcli.runs.folder_lock import owned_folder
from peftcli.runs.own_files import can_go_on, holds_a_run, remove_locks, remove_run, strangers
from peftcli.streams import tell


class RunPlace:
    """Where a new run is written: `folder`, which is `final` from the beginning or after `take_over`."""

    def __init__(self, final: Path, aside: Path | None = None) -> None:
        self.final = final
        self.aside = aside
        self.folder = final if aside is None else aside

    @property
    def waits(self) -> bool:
        """Whether an older run still has the place."""
        return self.folder != self.final

    def take_over(self, move: Callable[[Path, Path], None]) -> None:
        """Puts the new run in the older one's place, and removes that. `move(old, new)` is called with the other place;
        when it fails everything is put back.

        Raises `StorageError` where somebody put a file of his own into the older run meanwhile.
        """
        if self.aside is None or not self.waits:
            return
        # asked again: hours may lie between the start and the first checkpoint
        _require_ours(self.final)
        folders.exchange_folders(self.final, self.aside, say=tell)
        try:
            self.folder = self.final
            move(self.aside, self.final)
        # whatever went wrong, Ctrl-C too: the older run is back in its place before anybody hears of it
        except BaseException:
            folders.exchange_folders(self.final, self.aside, say=tell)
            self.folder = self.aside
            move(self.final, self.aside)
            raise
        _remove(self.aside)


def require_free(folder: Path, loaded: LoadedRecipe, *, replace: bool) -> None:
    """Raises `StorageError` where a new run cannot have a folder: before anything is made, planned or removed."""
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise StorageError("the output path is a file, not a folder", where=str(part), fix="choose another output")
    if not folder.is_dir():
        return
    needed = _needed_in(folder, loaded) if replace or holds_a_run(folder) else None
    if needed is not None:
        raise StorageError(
            f"the folder cannot be replaced: it holds {needed}", where=str(folder), fix="choose another --output"
        )
    if not replace and holds_a_run(folder):
        raise _taken(folder)
    _require_ours(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError("no permission to write here", where=str(folder), fix="choose another output")


def _taken(folder: Path) -> StorageError:
    """What is in the way of a new run, and what can be done with it."""
    if strangers(folder):
        # what is not only ours cannot be replaced either
        return StorageError(f"the folder holds {_listed(folder)}", where=str(folder), fix="choose another --output")
    if can_go_on(folder):
        return StorageError(
            "the folder holds an unfinished run",
            where=str(folder),
            fix=f"`peft resume {folder}` goes on with it; --replace begins anew; or choose another --output",
        )
    return StorageError(
        "the folder already holds a run",
        where=str(folder),
        fix="choose another --output, add --replace, or `peft resume` it",
    )


@contextlib.contextmanager
def run_place(folder: Path, loaded: LoadedRecipe, *, replace: bool) -> Iterator[RunPlace]:
    """Makes and owns the place of a new run. An older run stays as it is until `take_over`.

    Raises what `require_free` does, and `StorageError` where another process owns the folder.
    """
    require_free(folder, loaded, replace=replace)
    # of a link, what it points to: folders change places, links do not
    folder = folder.resolve() if folder.is_symlink() else folder
    with owned_folder(folder):
        if not holds_a_run(folder):
            # what a start that failed at once has left
            remove_run(folder)
            yield RunPlace(folder)
            return
        with _aside(folder) as aside:
            place = RunPlace(folder, aside)
            try:
                yield place
            finally:
                if place.waits:
                    tell(f"note: the run in {folder} is unchanged")


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """The folder of the new run beside the old one; whatever it holds in the end is given up."""
    if os.path.ismount(folder):
        raise StorageError("a mounted folder cannot be replaced", where=str(folder), fix="choose another --output")
    aside = folder.with_name(f".{folder.name}.new")
    if aside.is_symlink() or (aside.exists() and not aside.is_dir()):
        raise StorageError("a file is in the way of the new run", where=str(aside), fix="move it elsewhere")
    if aside.is_dir():
        _require_ours(aside)
    with owned_folder(aside):
        remove_run(aside)
        try:
            yield aside
        finally:
            _remove(aside)


def _remove(folder: Path) -> None:
    """Removes a run that is given up; what cannot be removed gets a warning, and does not fail the run that goes on."""
    try:
        if folder.is_dir():
            left = remove_run(folder)
            remove_locks(folder)
            if left:
                tell(f"note: {folder} keeps what no run wrote: {', '.join(left[:3])}")
            elif not any(folder.iterdir()):
                files.disk.remove_empty(folder)
    except (StorageError, OSError) as error:
        tell(f"warning: {folder} could not be removed: {error}")


def _require_ours(folder: Path) -> None:
    if strangers(folder):
        raise StorageError(f"the folder holds {_listed(folder)}", where=str(folder), fix="choose another output")


def _listed(folder: Path) -> str:
    return f"other files ({', '.join(strangers(folder)[:3])})"


def _needed_in(folder: Path, loaded: LoadedRecipe) -> str | None:
    """What of this very start lies in a folder: the working directory, the recipe, a file or folder that it names."""
    place = folder.resolve()
    if _is_within(Path.cwd(), place):
        return "the working directory"
    written = {Path(origin.rsplit(":", 2)[0]) for origin in loaded.origins.values()}
    if any(_is_within(path, place) for path in (loaded.path, *(path for path in written if path.is_file()))):
        return "the recipe"
    named = (value for key, value in flat_recipe(loaded.recipe).items() if key != "output")
    inputs = [
        text for value in named for text in _texts(value) if os.path.isabs(text) and _is_within(Path(text), place)
    ]
    return f"what the recipe reads: {inputs[0]}" if inputs else None


def _is_within(path: Path, place: Path) -> bool:
    return place in (path.resolve(), *path.resolve().parents, *Path(os.path.abspath(path)).parents)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
    elif isinstance(value, Iterable):
        for item in value:
            yield from _texts(item)
