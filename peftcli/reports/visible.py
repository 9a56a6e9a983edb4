"""Text that nobody vouches for, made visible: what a reader sees is what the bytes say.

Control characters and escape sequences drive terminals, bidi marks reorder a line, zero-width characters and tag
characters hide text. Each is shown by its code point instead, e.g. `⟨U+202E⟩` (Unicode TR 36, "Trojan Source").
"""

from __future__ import annotations

import unicodedata

_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # letters of Persian and Hindi, and composed emoji, need them
_LAYOUT = "\n\t"


def reveal(text: str, *, one_line: bool = False) -> str:
    """`text` with every unseen character replaced by its code point; line breaks and tabs stay unless `one_line`."""
    if text.isprintable():  # the usual case, and quick: nothing hidden is printable
        return text
    kept = _JOINERS if one_line else _JOINERS + _LAYOUT
    return "".join(char if char in kept or not _is_hidden(char) else _named(char) for char in text)


def _is_hidden(char: str) -> bool:
    if char.isascii():
        return not char.isprintable()
    code = ord(char)
    is_noncharacter = 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
    return is_noncharacter or unicodedata.category(char) in _HIDDEN_CATEGORIES


def _named(char: str) -> str:
    return f"⟨U+{ord(char):04X}⟩"


def clipped(text: str, limit: int, *, one_line: bool = False) -> str:
    """`text` made visible and held to `limit` characters; how many of its own were left out is said.

    The limit counts what is shown, so that hidden characters cannot swell a page.
    """
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
