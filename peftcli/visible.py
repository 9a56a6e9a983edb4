"""Text that nobody vouches for, made visible: what a reader sees is what the bytes say.

Control characters and escape sequences drive terminals, bidi marks reorder a line, zero-width characters and tag
characters hide text. Each is shown by its code point instead, e.g. `⟨U+202E⟩` (Unicode TR 36, "Trojan Source").
"""

from __future__ import annotations

import re
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
    # the code points that Unicode reserves for no character: 32 in one block, and the last two of every plane
    is_noncharacter = 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
    return is_noncharacter or unicodedata.category(char) in _HIDDEN_CATEGORIES


def _named(char: str) -> str:
    return f"⟨U+{ord(char):04X}⟩"


# everything hidden, except line breaks, and more that a closer look lets through
_PERHAPS_HIDDEN = re.compile(r"[^\n -~\xa1-\xac\xae-\u02ff]")


def escaped_json(document: str) -> str:
    """JSON text in which every unseen character stands as `\\uXXXX`: the same values, nothing that drives a terminal."""
    return _PERHAPS_HIDDEN.sub(_json_escape, document)


def _json_escape(found: re.Match[str]) -> str:
    char = found[0]
    if char in _JOINERS or not _is_hidden(char):
        return char
    # JSON escapes count in UTF-16: what lies beyond U+FFFF takes two
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
