"""Conversations: rendered, encoded as one text, and the mask proven on every row.

The ids are those that the tokenizer gives for the whole text, which is what `apply_chat_template` does. The proof: the ids
that carry loss, decoded, are exactly the answer as the template renders it with its stop token; for tokenizers that do not
give back what they read (case, spaces after a special token), the text up to either edge of an answer, encoded by itself,
is exactly the ids up to there.

Where a token lies across an edge, the row is encoded again in pieces, cut there: its ids differ from the tokenizer's own at
these edges and nowhere else, and what it decodes to must be what the tokenizer's own ids decode to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

from peftcli.data.chat.bounds import Outcome
from peftcli.data.chat.limits import TemplateRefusal
from peftcli.data.chat.spans import RenderedChat, Span
from peftcli.data.encode.base import EncodedRows, EncodeSettings, Place, RowHit
from peftcli.data.faults import RowFault, excerpt
from peftcli.data.rows import ChatRow
from peftcli.data.tokens import Codec
from peftcli.errors import ModelError

Run = tuple[list[int], float]
"""Consecutive tokens of one weight."""
_UNPROVEN = "the mask cannot be proven: the trained tokens are not exactly the answer"
Render = Callable[[Sequence[ChatRow]], list[Outcome]]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A row of the chunk as it would be trained: context and answers by turns, answers at the odd places."""

    row: int
    rendered: RenderedChat
    runs: list[Run]

    @property
    def answers(self) -> list[list[int]]:
        return [ids for ids, _ in self.runs[1::2]]

    @property
    def ids(self) -> list[int]:
        return list(chain.from_iterable(ids for ids, _ in self.runs))

    @property
    def edges(self) -> list[int]:
        """How many tokens stand before each edge of an answer."""
        return list(accumulate(len(ids) for ids, _ in self.runs))[:-1]


def encode_chats(
    codec: Codec, render: Render, rows: Sequence[ChatRow], settings: EncodeSettings, place: Place
) -> EncodedRows:
    """The rows whose mask is proven, in order; the others are refused with the reason.

    Raises `ModelError` with the row's place when the template fails.
    """
    out = EncodedRows()
    context = 1.0 if settings.train_on == "all" else 0.0
    rendered = _rendered(render(rows), place, out)
    # all texts in one call: the Rust tokenizer works on them with every core
    encodings = codec.encode_with_offsets([each.text for _, each in rendered])
    candidates = [
        _Candidate(row, each, runs_of(encoding.ids, each.spans, token_ranges(encoding, each.spans), context))
        for (row, each), encoding in zip(rendered, encodings, strict=True)
    ]
    for candidate, holds in zip(candidates, _decode_to_answers(codec, candidates), strict=True):
        # the cheap proof first; the second encodes the text once more for each edge, and is for tokenizers that change
        # text
        proven = candidate if holds or _begins_alike(codec, candidate) else _in_pieces(codec, candidate, context)
        if proven is None:
            out.refused[candidate.row] = _UNPROVEN, None
        else:
            _append(out, proven)
    return out


def _rendered(outcomes: Sequence[Outcome], place: Place, out: EncodedRows) -> list[tuple[int, RenderedChat]]:
    found = []
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, RenderedChat):
            found.append((number, outcome))
        elif isinstance(outcome, RowFault):
            out.refused[number] = outcome.message, outcome.fix
        elif isinstance(outcome, TemplateRefusal):
            out.refused[number] = f"the chat template refuses the row: {excerpt(str(outcome), 160)}", None
        else:
            where = f"{outcome.where}; {place(number)}" if outcome.where else place(number)
            # a fault of the template, not of the row: no later row would fare better
            raise ModelError(outcome.message, where=where, fix=outcome.fix)
    return found


def token_ranges(encoding: Any, spans: Sequence[Span]) -> list[tuple[int, int]]:
    """First and one-past-last token of each span, from the character offsets; empty where no token is at an edge."""
    ranges = []
    for span in spans:
        first = encoding.char_to_token(span.start)
        # `end - 1`: the last character of the span, for its end may be that of the text
        last = encoding.char_to_token(span.end - 1)
        ranges.append((0, 0) if first is None or last is None else (first, last + 1))
    return ranges


def runs_of(ids: list[int], spans: Sequence[Span], ranges: Sequence[tuple[int, int]], context: float) -> list[Run]:
    """The row's tokens as context, answer, context, ..., answer, context."""
    # context and answers by turns, even where one of them is empty: answers stand at odd places
    runs: list[Run] = []
    at = 0
    for span, (first, end) in zip(spans, ranges, strict=True):
        runs += [(ids[at:first], context), (ids[first:end], span.weight)]
        at = end
    return [*runs, (ids[at:], context)]


def _decode_to_answers(codec: Codec, candidates: Sequence[_Candidate]) -> list[bool]:
    """Whether the answers of each row decode to its spans; all rows in one call of the decoder."""
    decoded = iter(codec.decode([ids for candidate in candidates for ids in candidate.answers]))
    return [
        # a list, not a generator: `all` would stop early, and leave decoded answers for the next row
        all([next(decoded) == candidate.rendered.text[span.start : span.end] for span in candidate.rendered.spans])
        for candidate in candidates
    ]


def _begins_alike(codec: Codec, candidate: _Candidate) -> bool:
    """Whether the text up to each edge of an answer, encoded by itself, gives the row's ids up to there."""
    text, ids = candidate.rendered.text, candidate.ids
    edges = [edge for span in candidate.rendered.spans for edge in (span.start, span.end)]
    alone = codec.encode([text[:edge] for edge in edges])
    return all(ids[:count] == begin for begin, count in zip(alone, candidate.edges, strict=True))


def _in_pieces(codec: Codec, candidate: _Candidate, context: float) -> _Candidate | None:
    """The row encoded so that no token lies across an edge of an answer; None when the proof does not hold even so."""
    text, spans = candidate.rendered.text, candidate.rendered.spans
    edges = [0, *(edge for span in spans for edge in (span.start, span.end)), len(text)]
    pieces = [_piece(codec, text, start, end) for start, end in pairwise(edges)]
    ends = list(accumulate(map(len, pieces)))
    ranges = list(zip(ends[0:-1:2], ends[1::2], strict=True))
    runs = runs_of(list(chain.from_iterable(pieces)), spans, ranges, context)
    again = _Candidate(candidate.row, candidate.rendered, runs)
    # cutting may change where tokens lie, never what the text is
    whole, cut = codec.decode([codec.encode([text])[0], again.ids])
    if whole == cut and (all(_decode_to_answers(codec, [again])) or _read_alike(codec, again)):
        return again
    return None


def _read_alike(codec: Codec, candidate: _Candidate) -> bool:
    """For tokenizers that change text: each answer decodes to what the tokenizer reads between its edges."""
    text, spans = candidate.rendered.text, candidate.rendered.spans
    before = codec.decode(codec.encode([text[: span.start] for span in spans]))
    until = codec.decode(codec.encode([text[: span.end] for span in spans]))
    return all(
        # white space aside: some tokenizers give back one space more or less at an edge
        longer.startswith(shorter) and longer[len(shorter) :].strip() == answer.strip()
        for shorter, longer, answer in zip(before, until, codec.decode(candidate.answers), strict=True)
    )


def _piece(codec: Codec, text: str, start: int, end: int) -> list[int]:
    if start == end:
        return []
    tokens = codec.added_pattern.finditer(text, 0, start) if codec.added_pattern else ()
    # after a token that the tokenizer cuts out first, a piece begins as a text of its own does
    begins = start == 0 or any(found.end() == start for found in tokens)
    return (codec.encode if begins else codec.encode_continuations)([text[start:end]])[0]


def _append(out: EncodedRows, candidate: _Candidate) -> None:
    start = len(out.ids)
    for ids, weight in candidate.runs:
        out.run(ids, weight)
    out.hits += [RowHit(check, candidate.row, message) for check, message in candidate.rendered.hits]
    out.end_row(candidate.row, start)
