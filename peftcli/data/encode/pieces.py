"""Rows of pieces (prompt and completion, segments): each piece is encoded by itself, so that the tokens of a prompt in
training are the tokens of that prompt at inference, whatever follows it."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.data.chat.thoughts import thoughts_in
from peftcli.data.encode.base import EncodedRows, EncodeSettings, RowHit, end_token
from peftcli.data.faults import excerpt
from peftcli.data.rows import MASKED, Piece, PiecesRow
from peftcli.data.tokens import Codec

_ENDS_OF_SENTENCES = ".?!,;)"


def encode_pieces(codec: Codec, rows: Sequence[PiecesRow], settings: EncodeSettings) -> EncodedRows:
    """Every row, in order: BOS, its pieces, and an end token with the weight of the last piece."""
    end = end_token(codec.eos_id, settings)
    written = [[piece for piece in row.pieces if piece.text] for row in rows]
    parts = [weighed_pieces(pieces, settings) for pieces in written]
    # of all rows together: two calls of the tokenizer for a chunk, not two for each row
    first = iter(codec.encode([pieces[0].text for pieces in parts if pieces]))
    later = iter(codec.encode_continuations([piece.text for pieces in parts for piece in pieces[1:]]))
    out = EncodedRows()
    for number, pieces in enumerate(parts):
        start = len(out.ids)
        weights = [0.0 if piece.weight is None else piece.weight for piece in pieces]
        if codec.prefix:
            out.run(codec.prefix, weights[0] if weights and settings.train_on == "all" else 0.0)
        ids: list[int] = []
        for position, weight in enumerate(weights):
            ids = next(later) if position else next(first)
            out.run(ids, weight)
        _end(out, number, ids, weights, end, codec)
        if (border := _missing_border(written[number], piece_weights(written[number], settings))) is not None:
            out.hits.append(RowHit("missing-border", number, border))
        if settings.thoughts != 1 and len(pieces) == len(written[number]):
            out.hits.append(RowHit("no-thoughts", number, "no answer has a thought, which `data.thoughts` is about"))
        out.end_row(number, start)
    return out


def _missing_border(pieces: Sequence[Piece], weights: Sequence[float]) -> str | None:
    """Where the first answer runs on from its prompt; signs that part (`:`, `=`, `>`, spaces) are borders enough."""
    answer = next((position for position, weight in enumerate(weights) if weight > 0), 0)
    # a row that gives its pieces weights has chosen its borders itself
    if not answer or pieces[answer].weight is None:
        return None
    before, after = pieces[answer - 1].text, pieces[answer].text
    if after[0].isalnum() and (before[-1].isalnum() or before[-1] in _ENDS_OF_SENTENCES):
        return f"the answer begins right after its prompt: {excerpt(before[-8:] + after[:8])!r}"
    return None


def weighed_pieces(pieces: Sequence[Piece], settings: EncodeSettings) -> list[Piece]:
    """The pieces with the weights that count; thoughts in what is trained are pieces of their own where they weigh
    differently."""
    found: list[Piece] = []
    for piece, weight in zip(pieces, piece_weights(pieces, settings), strict=True):
        before, at = found[-1].text if found else "", 0
        for start, end in thoughts_in(piece.text, before) if weight and settings.thoughts != 1 else ():
            found += [
                Piece(piece.text[at:start], weight),
                Piece(piece.text[start:end], weight * settings.thoughts or MASKED),
            ]
            at = end
        found.append(Piece(piece.text[at:], weight))
    return [piece for piece in found if piece.text]


def piece_weights(pieces: Sequence[Piece], settings: EncodeSettings) -> list[float]:
    """The loss weight of each piece under the recipe's `train_on`; flags of the row itself win."""
    undecided = 1.0 if settings.train_on == "all" else 0.0
    weights = [undecided if piece.weight is None else piece.weight for piece in pieces]
    if settings.train_on != "last-turn":
        return weights
    last = max((position for position, weight in enumerate(weights) if weight > 0), default=-1)
    return [weight if position == last else 0.0 for position, weight in enumerate(weights)]


def _end(out: EncodedRows, row: int, ids: list[int], weights: list[float], end: list[int], codec: Codec) -> None:
    last = weights[-1] if weights else 0.0
    # a piece that ends with the end token needs no second one
    if end and ids[-1:] != end:
        out.run(end, last)
    elif last > 0 and not end and ids[-1:] != [codec.eos_id]:
        out.hits.append(RowHit("stop-token", row, "the completion is trained without an end token (append_eos: false)"))
