"""Rows with labels: one text or two in the tokenizer's own frame."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.data.encode.base import EncodedRows, EncodeSettings
from peftcli.data.parts import part
from peftcli.data.rows import LabelRow
from peftcli.data.tokens import Codec
from peftcli.errors import ModelError


def encode_labelled(codec: Codec, rows: Sequence[LabelRow], settings: EncodeSettings) -> EncodedRows:
    """Every row, in order: its texts as the tokenizer itself frames them, no token a target, its labels as they are."""
    first = codec.encode([row.text for row in rows])
    second = iter(codec.encode([row.pair for row in rows if row.pair is not None]))
    out = EncodedRows()
    for number, (row, ids) in enumerate(zip(rows, first, strict=True)):
        start = len(out.ids)
        if row.pair is None:
            _one_text(codec, ids, out)
        else:
            _two_texts(codec, ids, next(second), out)
        if len(out.ids) == start:
            out.refused[number] = ("the tokenizer makes no token of the text", None)
            continue
        out.labels.append(row.labels)
        out.end_row(number, start)
    out.run_lengths, out.run_weights = [len(out.ids)], [0.0]
    return out


def _one_text(codec: Codec, ids: list[int], out: EncodedRows) -> None:
    frame = part(text=0, frame=True)
    out.ids.extend([*codec.prefix, *ids, *codec.suffix])
    out.parts += [frame] * len(codec.prefix) + [part(text=0)] * len(ids) + [frame] * len(codec.suffix)


def _two_texts(codec: Codec, first: list[int], second: list[int], out: EncodedRows) -> None:
    pair = codec.pair
    if pair is None:
        raise ModelError(
            "the tokenizer does not say how it joins two texts", fix="join them yourself into one column `text`"
        )
    for frame, ids, kind, text in (
        (pair.before, first, pair.first_type, 0),
        (pair.between, second, pair.second_type, 1),
    ):
        _framed(frame, out)
        out.ids.extend(ids)
        out.parts += [part(text=text, type=kind)] * len(ids)
    _framed(pair.after, out)


def _framed(frame: Sequence[tuple[int, int]], out: EncodedRows) -> None:
    out.ids.extend(number for number, _ in frame)
    out.parts += [part(text=0, type=kind, frame=True) for _, kind in frame]
