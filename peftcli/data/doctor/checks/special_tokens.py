"""Messages that spell a special token of the tokenizer: it would be encoded as one, and cut the turn short."""

from __future__ import annotations

from collections.abc import Iterable

from peftcli.data.doctor.base import Check, RowBatch, row_text
from peftcli.data.rows import ChatRow


def scan(batch: RowBatch) -> Iterable[tuple[int, str]]:
    """A hit for every conversation that spells a special token."""
    chats = any(type(row) is ChatRow for row in batch.rows)
    spelt = [text for text in batch.specials if text in batch.joined] if chats else []
    for position, row in enumerate(batch.rows) if spelt else ():
        found = [text for text in spelt if text in row_text(row)] if isinstance(row, ChatRow) else []
        if found:
            yield position, f"a message spells the special token {found[0]!r}"


CHECK = Check("warn", "messages that spell a special token", scan=scan)
