"""Numbers of rows that took a model to find, kept beside the tokens; found by all that they depend on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peftcli import files
from peftcli.errors import StorageError

FOLDER = "references"
"""Of the cache, where the numbers lie."""
_DIGEST = 64
"""Hexadecimal digits in front of the numbers."""


def load_values(cache_dir: Path, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    """The numbers, of this shape, float64; None where there are none, or not those that were written."""
    try:
        body = files.read_bounded(cache_dir / FOLDER / key, limit_bytes=_DIGEST + 8 * shape[0] * shape[1])
    except (StorageError, OSError):
        return None
    digest, numbers = body[:_DIGEST], body[_DIGEST:]
    if len(numbers) != 8 * shape[0] * shape[1] or files.sha256_bytes(numbers).encode() != digest:
        return None
    return np.frombuffer(numbers, dtype="<f8").reshape(shape).astype(np.float64)


def save_values(cache_dir: Path, key: str, values: np.ndarray) -> None:
    """Keeps the numbers. A cache saves time and no more: a folder that cannot be written keeps nothing."""
    numbers = np.ascontiguousarray(values, dtype="<f8").tobytes()
    try:
        files.write_bytes(cache_dir / FOLDER / key, files.sha256_bytes(numbers).encode() + numbers)
    except (StorageError, OSError):
        return
