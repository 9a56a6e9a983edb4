"""Rows of a source and a target, for models that read the one whole and write the other."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.data.encode.base import EncodedRows, EncodeSettings
from peftcli.data.encode.pieces import piece_weights
from peftcli.data.parts import part
from peftcli.data.rows import PairRow, PiecesRow
from peftcli.data.tokens import Codec

SOURCE, TARGET = 0, 1
"""Texts of such a row, as `data.parts` numbers them."""


def encode_pairs(codec: Codec, rows: Sequence[PairRow], settings: EncodeSettings) -> EncodedRows:
    """Every row, in order: source, then target, both in the tokenizer's own frame; all of the target is trained."""
    sources, targets = codec.encode([row.source for row in rows]), codec.encode([row.target for row in rows])
    out = EncodedRows()
    for number, ids in enumerate(zip(sources, targets, strict=True)):
        start = len(out.ids)
        for text, tokens in zip((SOURCE, TARGET), ids, strict=True):
            frame = part(text=text, frame=True)
            out.run([*codec.prefix, *tokens, *codec.suffix], float(text))
            out.parts += [frame] * len(codec.prefix) + [part(text=text)] * len(tokens) + [frame] * len(codec.suffix)
        out.end_row(number, start)
    return out


def encode_prompts(codec: Codec, rows: Sequence[PiecesRow], settings: EncodeSettings) -> EncodedRows:
    """The same of prompts and completions: what is trained is the target, what stands before it the source."""
    pairs: list[PairRow] = []
    refused: dict[int, tuple[str, str | None]] = {}
    for number, row in enumerate(rows):
        pieces = [piece for piece in row.pieces if piece.text]
        weights = piece_weights(pieces, settings)
        first = next((place for place, weight in enumerate(weights) if weight), len(pieces))
        pairs.append(PairRow(*("".join(piece.text for piece in run) for run in (pieces[:first], pieces[first:]))))
        if not 0 < first < len(pieces) or not all(weights[first:]):
            refused[number] = ("the row is not one source and one target after it", None)
    kept = [number for number in range(len(rows)) if number not in refused]
    out = encode_pairs(codec, [pairs[number] for number in kept], settings)
    out.kept, out.refused = kept, refused
    return out
