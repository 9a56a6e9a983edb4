"""What a recipe names: a path, a Hub id, or something built in."""

from __future__ import annotations

import os
from pathlib import Path

from peftcli import files

BUILTIN_PREFIX = "builtin:"
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".zst", ".arrow")
_GLOB_CHARACTERS = frozenset("*?[")


def is_path(value: str, folder: Path) -> bool:
    """Whether a base or source is a path; else it is a Hub id or `builtin:NAME`.

    A path starts with `/ ./ ../ ~`, has more than one slash, has a first part that exists beside the recipe (in
    `folder`), or cannot be a Hub id: it holds a wildcard, or ends like a data file.
    """
    if value.startswith(BUILTIN_PREFIX):
        return False
    if _GLOB_CHARACTERS & set(value) or value.lower().endswith(DATA_SUFFIXES):
        return True
    return files.names_a_path(value, folder)


def absolute(value: str, folder: Path) -> str:
    """A path made absolute against `folder`; links are left as they are."""
    return os.path.abspath(folder / Path(value).expanduser())
