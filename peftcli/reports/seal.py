"""A record that can tell whether it is still what was written: it carries the hash of everything else in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli import files

KEY = "digest"
"""Under which a document carries its own hash."""
BESIDE = ("metrics.jsonl", "recipe.yaml", "recipe.lock", "data/findings.jsonl")
"""Files of a run that are read again after it, beside its record and its adapter."""


def hashes_beside(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of what a finished run has written beside its record."""
    return {name: files.sha256_file(folder / name) for name in BESIDE if (folder / name).is_file()}


def changed_beside(folder: Path, hashes: Mapping[str, str], names: tuple[str, ...] = BESIDE) -> str | None:
    """The first of some files of a run that is gone, or has another hash than its record says; None where none is."""
    for name in names:
        path = folder / name
        if name in hashes and (not path.is_file() or files.sha256_file(path) != hashes[name]):
            return name
    return None


def sealed(text: str) -> str:
    """A JSON object as text, with the hash of its other keys as the last one."""
    # last, so that the head of the file, which people look at, begins with what the run was
    document = json.loads(text)
    return files.to_json({**document, KEY: digest_of(document)})


def is_broken(document: dict[str, Any]) -> bool:
    """Whether a document carries a hash that is not its own. One without a hash is of an older version."""
    found = document.get(KEY)
    return found is not None and found != digest_of(document)


def digest_of(document: dict[str, Any]) -> str:
    """SHA-256 of all that a document holds beside its own hash, however its text is laid out."""
    # sorted keys and escapes alone: another order or spelling of the same facts is no change
    plain = {key: value for key, value in document.items() if key != KEY}
    return files.sha256_bytes(json.dumps(plain, sort_keys=True, ensure_ascii=True).encode())
