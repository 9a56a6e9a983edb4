"""Conversations: rendered, encoded as one text, and the mask proven on every row.

The proof: the ids that carry loss, decoded, are exactly the answer as the template renders it with its stop token.
Where a token lies across the edge of an answer, the row is encoded again in pieces, and has to pass the same proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

from peftcli.data.chat.sandbox import TemplateRefusal
from peftcli.data.chat.spans import Rendered, Renderer, Span
from peftcli.data.encode.base import EncodedRows, EncodeSettings, Place, RowHit
from peftcli.data.faults import RowFault, excerpt
from peftcli.data.rows import ChatRow
from peftcli.data.tokens import Codec
from peftcli.errors import ModelError

Run = tuple[list[int], float]
"""Consecutive tokens of one weight."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A row of the chunk as it would be trained: context and answers by turns, answers at the odd places."""

    row: int
    rendered: Rendered
    runs: list[Run]

    @property
    def answers(self) -> list[list[int]]:
        return [ids for ids, _ in self.runs[1::2]]


def encode_chats(
    codec: Codec, renderer: Renderer, rows: Sequence[ChatRow], settings: EncodeSettings, place: Place
) -> EncodedRows:
    """The rows whose mask is proven, in order; the others are refused with the reason.

    Raises `ModelError` with the row's place when the template fails.
    """
    out = EncodedRows()
    context = 1.0 if settings.train_on == "all" else 0.0
    rendered = _rendered(renderer, rows, place, out)
    encodings = codec.encode_with_offsets([each.text for _, each in rendered])
    candidates = [
        _Candidate(row, each, runs_of(encoding.ids, each.spans, token_ranges(encoding, each.spans), context))
        for (row, each), encoding in zip(rendered, encodings, strict=True)
    ]
    for candidate, holds in zip(candidates, _proven(codec, candidates), strict=True):
        proven = candidate if holds else _in_pieces(codec, candidate, context)
        if proven is None:
            out.refused[candidate.row] = "the mask cannot be proven: the trained tokens are not exactly the answer"
        else:
            _append(out, proven)
    return out


def _rendered(
    renderer: Renderer, rows: Sequence[ChatRow], place: Place, out: EncodedRows
) -> list[tuple[int, Rendered]]:
    found = []
    for number, row in enumerate(rows):
        try:
            found.append((number, renderer.render(row)))
        except TemplateRefusal as refusal:
            out.refused[number] = f"the chat template refuses the row: {excerpt(str(refusal), 160)}"
        except RowFault as fault:
            out.refused[number] = fault.message
        except ModelError as error:
            where = f"{error.where}; {place(number)}" if error.where else place(number)
            raise ModelError(error.message, where=where, fix=error.fix) from error
    return found


def token_ranges(encoding: Any, spans: Sequence[Span]) -> list[tuple[int, int]]:
    """First and one-past-last token of each span, from the character offsets; empty where no token is at an edge."""
    ranges = []
    for span in spans:
        first = encoding.char_to_token(span.start)
        last = encoding.char_to_token(span.end - 1)
        ranges.append((0, 0) if first is None or last is None else (first, last + 1))
    return ranges


def runs_of(ids: list[int], spans: Sequence[Span], ranges: Sequence[tuple[int, int]], context: float) -> list[Run]:
    """The row's tokens as context, answer, context, ..., answer, context."""
    runs: list[Run] = []
    at = 0
    for span, (first, end) in zip(spans, ranges, strict=True):
        runs += [(ids[at:first], context), (ids[first:end], span.weight)]
        at = end
    return [*runs, (ids[at:], context)]


def _proven(codec: Codec, candidates: Sequence[_Candidate]) -> list[bool]:
    """Whether the answers of each row decode to its spans; all rows in one call of the decoder."""
    decoded = iter(codec.decode([ids for candidate in candidates for ids in candidate.answers]))
    return [
        all([next(decoded) == candidate.rendered.text[span.start : span.end] for span in candidate.rendered.spans])
        for candidate in candidates
    ]


def _in_pieces(codec: Codec, candidate: _Candidate, context: float) -> _Candidate | None:
    """The row encoded so that no token lies across an edge of an answer; None when the proof does not hold even so.

    Tokenizers that change text (case, accents, unknown words) cannot give it back: for them the answers must decode to
    what the tokenizer makes of each answer alone.
    """
    text, spans = candidate.rendered.text, candidate.rendered.spans
    edges = [0, *(edge for span in spans for edge in (span.start, span.end)), len(text)]
    pieces = [_piece(codec, text, start, end) for start, end in pairwise(edges)]
    ends = list(accumulate(map(len, pieces)))
    ranges = list(zip(ends[0:-1:2], ends[1::2], strict=True))
    runs = runs_of(list(chain.from_iterable(pieces)), spans, ranges, context)
    again = _Candidate(candidate.row, candidate.rendered, runs)
    if all(_proven(codec, [again])) or codec.decode(again.answers) == codec.decode(pieces[1::2]):
        return again
    return None


def _piece(codec: Codec, text: str, start: int, end: int) -> list[int]:
    if start == end:
        return []
    pattern = codec.special_pattern
    specials = pattern.finditer(text, 0, start) if pattern else ()
    begins = start == 0 or any(found.end() == start for found in specials)
    return (codec.encode if begins else codec.encode_continuations)([text[start:end]])[0]


def _append(out: EncodedRows, candidate: _Candidate) -> None:
    start = len(out.ids)
    for ids, weight in candidate.runs:
        out.run(ids, weight)
    out.hits += [RowHit(check, candidate.row, message) for check, message in candidate.rendered.hits]
    out.end_row(candidate.row, start)
