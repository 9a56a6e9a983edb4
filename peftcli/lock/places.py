"""Paths in a lock: relative to it, so that a clone elsewhere reads the same; a home folder is `~`."""

from __future__ import annotations

import os
from pathlib import Path


def relative(path: str | Path, folder: Path) -> str:
    """An absolute path as a lock in `folder` writes it: begins with `./`, `../` or `~/`."""
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    home = Path.home()
    if path.is_relative_to(home) and not folder.is_relative_to(home):
        # the way there would name the user
        return str(Path("~") / path.relative_to(home))
    text = os.path.relpath(path, folder)
    # without `./` a file beside the lock would look like a Hub id
    return text if text.startswith("..") else f"./{text}"


def absolute(text: str, folder: Path) -> Path:
    """The path that a lock in `folder` means."""
    return Path(os.path.abspath(folder / Path(text).expanduser()))


def is_place(value: object) -> bool:
    """Whether a value of a locked recipe is a path (else a Hub id, a built-in name, or no text)."""
    return isinstance(value, str) and value.startswith(("./", "../", "~/", "/"))


def moved(value: object, old: Path, new: Path) -> object:
    """A locked value with its paths, written for a lock in `old`, written for one in `new`."""
    if isinstance(value, list):
        return [moved(item, old, new) for item in value]
    if isinstance(value, dict):
        return {key: moved(item, old, new) for key, item in value.items()}
    return relative(absolute(value, old), new) if isinstance(value, str) and is_place(value) else value


def without_places(value: object) -> object:
    """A value with every path left out: files are known by their hashes, not by where they lie."""
    if isinstance(value, list):
        return [without_places(item) for item in value]
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    return "a path" if is_place(value) else value
