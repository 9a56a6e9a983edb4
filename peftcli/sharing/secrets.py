"""No credential leaves this machine with an adapter: every text that is sent is looked through before."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.errors import CheckFailed, Fault
from peftcli.models.companions import is_tokenizer_name
from peftcli.redaction import secrets_by_line
from peftcli.sharing.contents import Piece

_TENSORS_SUFFIX = ".safetensors"
_MOST_TOLD = 3
"""Lines of one file that are named."""
_NOT_VOCABULARY = ("tokenizer_config.json", "chat_template.json", "chat_template.jinja")


def require_no_secrets(pieces: Sequence[Piece]) -> None:
    """Raises `CheckFailed` naming every place of a credential, by file and line, and never the credential itself."""
    faults = [fault for piece in pieces for fault in _faults(piece)]
    if faults:
        raise CheckFailed(
            "there are credentials in what would be sent; nothing was sent",
            faults=faults,
            fix="take them out, and revoke them where others may have seen them",
        )


def _faults(piece: Piece) -> list[Fault]:
    # a vocabulary is full of words, in which a name before a value says nothing
    named = not is_tokenizer_name(piece.name) or piece.name.endswith(_NOT_VOCABULARY)
    found = secrets_by_line(_text(piece), named=named)
    fix = "take it out, and revoke it where others may have seen it"
    return [Fault(f"{kind} in {piece.name}", f"{piece.place}:{line}", fix) for line, kind in found[:_MOST_TOLD]]


def _text(piece: Piece) -> str:
    """What can be read in a file; of tensors their header, which holds names and free text."""
    if not piece.name.endswith(_TENSORS_SUFFIX):
        return piece.read().decode("utf-8", errors="replace")
    head = piece.read(8)
    return piece.read(8 + int.from_bytes(head, "little"))[8:].decode("utf-8", errors="replace")
