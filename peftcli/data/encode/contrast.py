"""Rows of texts that are compared: each in the tokenizer's own frame, as a model that reads them one by one sees them."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.data.encode.base import EncodedRows, EncodeSettings
from peftcli.data.parts import part
from peftcli.data.rows import ContrastRow
from peftcli.data.tokens import Codec


def encode_contrast(codec: Codec, rows: Sequence[ContrastRow], settings: EncodeSettings) -> EncodedRows:
    """The texts of each row one after the other, told apart by their parts; no token is a target. Labelled with its
    score where it has one, with nothing where it does not: every row is one target."""
    encoded = iter(codec.encode([text for row in rows for text in row.texts]))
    out = EncodedRows()
    for number, row in enumerate(rows):
        texts = [next(encoded) for _ in row.texts]
        if not all(texts):
            place = next(place for place, ids in enumerate(texts) if not ids)
            out.refused[number] = (f"the tokenizer makes no token of text {place + 1} of the row", None)
            continue
        start = len(out.ids)
        for text, ids in enumerate(texts):
            frame = part(text=text, frame=True)
            out.ids.extend([*codec.prefix, *ids, *codec.suffix])
            out.parts += [frame] * len(codec.prefix) + [part(text=text)] * len(ids) + [frame] * len(codec.suffix)
        out.labels.append(() if row.score is None else (row.score,))
        out.end_row(number, start)
    out.run_lengths, out.run_weights = [len(out.ids)], [0.0]
    return out
