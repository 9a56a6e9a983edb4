"""Memory of cards by name: what their makers state, so that a run is planned for one that is not here."""

from __future__ import annotations

import difflib

from peftcli.errors import RecipeError

GIB = 1 << 30
CARDS = {
    "rtx-3060": 12, "rtx-3090": 24, "rtx-4060-ti": 16, "rtx-4070": 12, "rtx-4080": 16, "rtx-4090": 24,
    "rtx-5070": 12, "rtx-5080": 16, "rtx-5090": 32, "rtx-a6000": 48, "rtx-6000-ada": 48,
    "t4": 16, "l4": 24, "a10": 24, "l40s": 48, "a100-40gb": 40, "a100-80gb": 80, "h100": 80, "h200": 141, "b200": 180,
}  # fmt: skip
"""GiB, as they are sold; the system keeps a little of it."""


def card_bytes(name: str) -> int:
    """Memory of a card. Raises `RecipeError` with near names."""
    key = name.strip().lower().replace(" ", "-").replace("_", "-")
    if key not in CARDS:
        near = difflib.get_close_matches(key, CARDS, n=3) or sorted(CARDS)
        raise RecipeError(
            f"no card is known by the name {name!r}", fix=f"for instance {', '.join(near)}; or --device-memory 24GiB"
        )
    return CARDS[key] * GIB
