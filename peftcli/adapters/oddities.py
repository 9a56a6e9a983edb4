"""Warnings about an adapter that loads although something about it is odd."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from peftcli.errors import AdapterWarning

MAX_SHOWN = 5


def tell(message: str, *, where: str | None = None) -> None:
    """Warns once for each message and place."""
    # `stacklevel`: the line of whoever called the function that tells
    warnings.warn(message if where is None else f"{message} ({where})", AdapterWarning, stacklevel=3)


def named(names: Iterable[str]) -> str:
    """The first few of some names, and how many more there are."""
    every = list(names)
    shown = ", ".join(f"`{name}`" for name in every[:MAX_SHOWN])
    return shown if len(every) <= MAX_SHOWN else f"{shown} and {len(every) - MAX_SHOWN} more"
