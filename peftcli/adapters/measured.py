"""What comparisons measured of the methods, as the repository keeps it; free of torch.

`measured.json` is written by `make measured` from recipes/measured, and says of each comparison its base, data, budget and
date: what it found holds there, and is a hint elsewhere.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftcli import files

MEASURED_PATH = Path(__file__).with_name("measured.json")
"""Where they lie: a list of comparisons, `methods` of each the best first."""
_LIMIT_BYTES = 1 << 20


@functools.cache
def measured() -> Sequence[dict[str, Any]]:
    """Every comparison that is kept; empty where none is."""
    if not MEASURED_PATH.is_file():
        return ()
    found: list[dict[str, Any]] = json.loads(files.read_bounded(MEASURED_PATH, limit_bytes=_LIMIT_BYTES))
    return tuple(found)


def setting(comparison: dict[str, Any]) -> str:
    """Where a comparison was made: `builtin:tiny on builtin:support, 60 steps, 2 seeds, 2026-11-28`."""
    return "{base} on {data}, {budget}, {seeds} seeds, {date}".format(**comparison)


def measured_line(comparison: dict[str, Any]) -> str:
    """All methods of a comparison, the best first; those that its rows cannot tell from the best say so."""
    listed = [f"{each['name']} {each['value']:.3g}{_alike(each)}" for each in comparison["methods"]]
    return f"measured ({setting(comparison)}), {comparison['metric']}: {', '.join(listed)}"


def measured_of(name: str) -> list[str]:
    """A sentence on a method or short name from each comparison that it took part in."""
    return [
        f"measured: {comparison['metric']} {each['value']:.4g} (95 %: {each['interval'][0]:.4g} to "
        f"{each['interval'][1]:.4g}), {place} of {len(comparison['methods'])} ({setting(comparison)})"
        for comparison in measured()
        for place, each in enumerate(comparison["methods"], 1)
        if each["name"] == name
    ]


def _alike(method: dict[str, Any]) -> str:
    low, high = method.get("to_best_interval", (1.0, 1.0))
    return " (no clear difference)" if low <= 0 <= high else ""
