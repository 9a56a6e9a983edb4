"""Sizes as people write them."""

from __future__ import annotations

import re

from peftcli.errors import RecipeError

# bounded: a number of hundreds of digits has no float
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*(B|KB|MB|GB|KiB|MiB|GiB)?", re.IGNORECASE)
_UNITS = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
MINIMUM_BYTES = 1 << 16


def parse_size(text: str, example: str) -> int:
    """`2GB`, `500MiB` -> bytes. Raises `RecipeError` with an example."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found.group(1)) * _UNITS[(found.group(2) or "B").lower()]) if found else 0
    if size < MINIMUM_BYTES:
        raise RecipeError(f"cannot read the size {text!r}", fix=f"for instance {example} (64 KiB at least)")
    return size


def size_text(num_bytes: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024 or unit == "GiB":
            return f"{num_bytes:,.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1024
    raise AssertionError("the loop ends at GiB")
