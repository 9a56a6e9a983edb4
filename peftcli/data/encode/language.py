"""Rows for language models: one run of tokens, each predicted from those before it."""

from __future__ import annotations

from peftcli.data.encode.base import Encoding
from peftcli.data.encode.pieces import encode_pieces
from peftcli.data.encode.text import encode_texts
from peftcli.data.rows import PiecesRow, TextRow

LANGUAGE = Encoding("language model", {TextRow: encode_texts, PiecesRow: encode_pieces}, chats=True, from_before=True)
"""How language models read rows; the task names itself in it."""
