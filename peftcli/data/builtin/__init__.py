"""The data sets that ship with the package: a folder each with a train and a validation split.

All rows come from a grammar of our own and are pinned in `hashes.json`. No name, brand or code of a validation row
occurs in any training row, nor in the pre-training of the built-in base.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from peftcli.errors import DataError

_HERE = Path(__file__).parent
HASHES_PATH = _HERE / "hashes.json"
DEFAULT_SPLIT = "train"


@cache
def pinned_hashes() -> dict[str, str]:
    """SHA-256 of each shipped file by its path, such as `support/train.jsonl`."""
    hashes: dict[str, str] = json.loads(HASHES_PATH.read_text(encoding="utf-8"))
    return hashes


@cache
def data_names() -> tuple[str, ...]:
    """What a recipe can name as `builtin:NAME`: `support` (its train split), `support/validation`, ..."""
    names = []
    for path in sorted(pinned_hashes()):
        name = path.removesuffix(".jsonl")
        folder, split = name.split("/")
        names += [folder, name] if split == DEFAULT_SPLIT else [name]
    return tuple(names)


def builtin_data(name: str) -> Path:
    """The file of a built-in data set, given its name without `builtin:`. Raises `DataError` for an unknown one."""
    if name not in data_names():
        near = get_close_matches(name, data_names(), n=3)
        shown = " or ".join(f"`builtin:{known}`" for known in near or data_names())
        raise DataError(f"there is no built-in data `builtin:{name}`", fix=f"use {shown}")
    folder, _, split = name.partition("/")
    return _HERE / folder / f"{split or DEFAULT_SPLIT}.jsonl"
