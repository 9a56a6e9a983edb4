"""Text that went through a wrong decoder, or holds control characters."""

from __future__ import annotations

import re
from collections.abc import Iterable

from peftcli.data.doctor.base import Check, RowBatch

_CONTROL_BYTES = bytes({*range(32), 127} - {9, 10, 13})
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# every character of a wrong decoder was a byte: two of them stand side by side, and no alphabet of thousands has them
_NEIGHBOURS = re.compile("[\x80-\u2e7f]{2}")


def scan(batch: RowBatch) -> Iterable[tuple[int, str]]:
    """A hit for every row with characters that only a fault leaves behind."""
    joined = batch.joined
    # one pass over all rows in C: most batches hold nothing and end here
    data = joined.encode("utf-8")
    control = len(data.translate(None, _CONTROL_BYTES)) != len(data)
    if not control and (joined.isascii() or ("\ufffd" not in joined and not _NEIGHBOURS.search(joined))):
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
    if unlikely := _unlikely(text):
        return f"{unlikely!a}: text that was read in another encoding than it was written in"
    return None


def _unlikely(text: str) -> str | None:
    """Neighbouring characters that wrong decoders produce and writers do not, as ftfy knows them.

    Its expression reads a few megabytes a second, so it sees only texts that could match.
    """
    if text.isascii() or not _NEIGHBOURS.search(text):
        return None
    from ftfy.badness import BADNESS_RE

    found = BADNESS_RE.search(text)
    return found.group() if found else None


CHECK = Check("warn", "characters that a wrong decoder left behind", scan=scan)
