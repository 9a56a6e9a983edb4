"""What a recipe names: a path, a Hub id, or something built in."""

from __future__ import annotations

import os
from pathlib import Path

from peftcli.data.sources import is_local
from peftcli.models.source import BUILTIN_PREFIX

__all__ = ["BUILTIN_PREFIX", "absolute", "is_path"]


def is_path(value: str, folder: Path) -> bool:
    """Whether a base or source is a path; else it is a Hub id or `builtin:NAME`.

    A path starts with `/ ./ ../ ~`, has more than one slash, has a first part that exists beside the recipe (in
    `folder`), or cannot be a Hub id: it holds a wildcard, or ends like a data file.
    """
    return is_local(value, folder)


def absolute(value: str, folder: Path) -> str:
    """A path made absolute against `folder`; links are left as they are."""
    return os.path.abspath(folder / Path(value).expanduser())
