"""Text that went through a wrong decoder, or holds control characters."""

from __future__ import annotations

import re
from collections.abc import Iterable

from peftcli.data.doctor.base import Check, RowBatch

_CONTROL_BYTES = bytes({*range(32), 127} - {9, 10, 13})
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# UTF-8 that was read as Latin-1 or Windows-1252 and written again
_MOJIBAKE = re.compile("Ã[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹Œ]|Â[\xa0-\xbf]|â€[\x80-\xbf™œ\x9d“”¦¢]")
_MOJIBAKE_STARTS = ("Ã", "Â", "â€")


def scan(batch: RowBatch) -> Iterable[tuple[int, str]]:
    joined = batch.joined
    data = joined.encode("utf-8")
    control = len(data.translate(None, _CONTROL_BYTES)) != len(data)
    if not control and "\ufffd" not in joined and not any(start in joined for start in _MOJIBAKE_STARTS):
        return
    for position, text in enumerate(batch.texts):
        if reason := junk_in(text):
            yield position, reason


def junk_in(text: str) -> str | None:
    """What is wrong with the characters of a text, or None."""
    if "\ufffd" in text:
        return "the replacement character U+FFFD: bytes were lost when the text was decoded"
    if found := _CONTROL.search(text):
        return f"the control character U+{ord(found.group()):04X}"
    if found := _MOJIBAKE.search(text):
        return f"{found.group()!a}: UTF-8 that was read in another encoding"
    return None


CHECK = Check("warn", "characters that a wrong decoder left behind", scan=scan)
