"""The bases that ship with the package: each a folder beside this file, every file pinned in `hashes.json`."""

from __future__ import annotations

import json
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from peftcli.errors import ModelError

_HERE = Path(__file__).parent
HASHES_PATH = _HERE / "hashes.json"
BUILTIN_LICENCE = "apache-2.0"
"""Of what ships with the package: its own (see LICENSE)."""


@cache
def pinned_hashes() -> dict[str, str]:
    """SHA-256 of each shipped file by its path, such as `tiny/model.safetensors`."""
    hashes: dict[str, str] = json.loads(HASHES_PATH.read_text(encoding="utf-8"))
    return hashes


def base_names() -> tuple[str, ...]:
    """The bases that a recipe can name as `builtin:NAME`."""
    return tuple(sorted({path.split("/")[0] for path in pinned_hashes()}))


def builtin_base(name: str) -> Path:
    """The folder of a built-in base, given its name without `builtin:`. Raises `ModelError` for an unknown one."""
    if name in base_names():
        return _HERE / name
    near = get_close_matches(name, base_names(), n=3)
    shown = " or ".join(f"`builtin:{known}`" for known in near or base_names())
    raise ModelError(f"there is no built-in base `builtin:{name}`", fix=f"use {shown}")
