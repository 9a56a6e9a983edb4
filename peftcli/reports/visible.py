"""Text that nobody vouches for, held to the room that a report has for it."""

from __future__ import annotations

from peftcli.visible import reveal


def clipped(text: str, limit: int, *, one_line: bool = False) -> str:
    """`text` made visible and held to `limit` characters; how many of its own were left out is said.

    The limit counts what is shown, so that hidden characters cannot swell a page.
    """
    # before revealing, so that a text of gigabytes is not walked through
    shown = reveal(text[:limit], one_line=one_line)
    if len(text) <= limit and len(shown) <= limit:
        return shown
    if len(shown) > limit:
        shown = shown[:limit]
        left = f"{len(text):,} characters in all"
    else:
        left = f"{len(text) - limit:,} more characters"
    return f"{shown} … ({left})"


def short_path(text: str) -> str:
    """Of an absolute path its last two parts, since a report is shown around and a machine's folders say nothing there.

    Everything else (Hub ids, built-in names, relative paths) stays as it is.
    """
    if not text.startswith(("/", "~")):
        return text
    return "/".join(text.rstrip("/").split("/")[-2:])
