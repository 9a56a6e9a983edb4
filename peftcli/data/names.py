"""Names of formats and checks, found by looking at which modules exist (and which entry points are installed)."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from pathlib import Path

_HERE = Path(__file__).parent
ENTRY_POINT_GROUP = "peftcli.formats"
"""The group under which installed packages offer formats of their own."""


@cache
def own_format_names() -> tuple[str, ...]:
    """The formats that ship with the package."""
    return _modules("formats")


@cache
def format_names() -> tuple[str, ...]:
    """Every known format, ours first, then those of installed packages."""
    own = own_format_names()
    return (
        *own,
        *sorted(point.name for point in metadata.entry_points(group=ENTRY_POINT_GROUP) if point.name not in own),
    )


@cache
def check_names() -> tuple[str, ...]:
    """Every check of the data doctor."""
    return _modules("doctor/checks")


def _modules(folder: str) -> tuple[str, ...]:
    names = (module.name for module in pkgutil.iter_modules([str(_HERE / folder)]))
    return tuple(sorted(name.replace("_", "-") for name in names))


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no known name is near."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""
