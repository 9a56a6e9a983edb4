"""Documents: BOS (where the tokenizer adds it), the text, an end token; all of it trained."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.data.encode.base import EncodedRows, EncodeSettings, RowHit, end_token
from peftcli.data.rows import TextRow
from peftcli.data.tokens import Codec
from peftcli.errors import RecipeError


def encode_texts(codec: Codec, rows: Sequence[TextRow], settings: EncodeSettings) -> EncodedRows:
    """Every row, in order."""
    if settings.thoughts != 1:
        raise RecipeError(
            "`data.thoughts` is about the thoughts before an answer, and documents have no answers",
            fix="leave it out; or a format with answers: messages, prompt-completion, segments",
        )
    end = end_token(codec.eos_id, settings)
    prefix = codec.prefix
    out = EncodedRows(kept=list(range(len(rows))))
    ids, lengths = out.ids, out.lengths
    spelled = codec.end_text if end else None
    for row, encoded in zip(rows, codec.encode([row.text for row in rows]), strict=True):
        # white space after it, a last line's end above all, makes it no other text
        doubled = encoded[-1:] == end or (spelled and end[0] in encoded and row.text.rstrip().endswith(spelled))
        if end and doubled:
            out.hits.append(RowHit("doubled-end", len(lengths), "the text ends with the end token and gets another"))
        whole = [*prefix, *encoded, *end]
        ids.extend(whole)
        lengths.append(len(whole))
    # one stretch for the whole chunk, for every token of a document is trained
    out.run_lengths, out.run_weights = [len(ids)], [1.0]
    return out
