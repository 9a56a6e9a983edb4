"""Rows of words with a tag each: the words as a text, the first token of each word a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from peftcli.data.encode.base import EncodedRows, EncodeSettings
from peftcli.data.rows import TagRow
from peftcli.data.tokens import Codec

OUTSIDE = -1
"""The word of a token that belongs to none (what the tokenizer puts around a text)."""


def encode_tagged(codec: Codec, rows: Sequence[TagRow], settings: EncodeSettings) -> EncodedRows:
    """Every row, in order. The part of a token is the number of its word; the first token of a word weighs 1.

    Words are joined by single spaces, as they would stand in a text, so that the tagger reads texts as well.
    """
    out = EncodedRows()
    encodings = codec.encode_with_offsets([" ".join(row.words) for row in rows])
    for number, (row, encoding) in enumerate(zip(rows, encodings, strict=True)):
        start = len(out.ids)
        words = _words_of(encoding, row.words)
        lost = len(row.words) - len(set(words))
        if lost:
            first = next(place for place in range(len(row.words)) if place not in set(words))
            out.refused[number] = (f"the tokenizer makes no token of word {first + 1}, {row.words[first]!r:.40}", None)
            continue
        out.run(codec.prefix, 0.0)
        firsts = [at == 0 or words[at] != words[at - 1] for at in range(len(words))]
        for token, is_first in zip(encoding.ids, firsts, strict=True):
            out.run([token], float(is_first))
        out.run(codec.suffix, 0.0)
        out.parts += [OUTSIDE] * len(codec.prefix) + words + [OUTSIDE] * len(codec.suffix)
        out.labels.append(row.tags)
        out.end_row(number, start)
    return out


def _words_of(encoding: Any, words: Sequence[str]) -> list[int]:
    """The number of the word that each token belongs to; a token that is only a space belongs to the word after it."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    text = " ".join(words)
    found = []
    for start, end in encoding.offsets:
        while start < end and text[start] == " ":
            start += 1
        found.append(min(int(np.searchsorted(ends, start, side="right")), len(words) - 1))
    return found


def keep_words(parts: np.ndarray, weights: np.ndarray, max_length: int, side: str) -> np.ndarray:
    """Positions that stay of a row that is too long: what frames it, and words from the side that is kept."""
    frame, body = np.flatnonzero(parts == OUTSIDE), np.flatnonzero(parts != OUTSIDE)
    room = max(max_length - len(frame), 1)
    kept = body[-room:] if side == "left" else body[:room]
    return np.sort(np.concatenate([frame, kept]))
