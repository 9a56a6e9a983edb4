"""Chooses the encoder by the shape of the rows, so that the caller needs to know none of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import cast

from peftcli.data.asking import TokenizerLimit
from peftcli.data.chat.bounds import BoundTemplate, Outcome
from peftcli.data.encode.base import EncodedRows, EncodeSettings, Encoding, Place, RowHit
from peftcli.data.encode.chat import encode_chats
from peftcli.data.encode.language import LANGUAGE
from peftcli.data.rows import (
    ChatRow,
    ContrastRow,
    LabelRow,
    PairRow,
    PiecesRow,
    PreferenceRow,
    Row,
    TagRow,
    TextRow,
)
from peftcli.data.tokens import Codec, TokenizerFacts
from peftcli.errors import ModelError, RecipeError

_SECONDS_TO_LOOK = 3.0
"""For one row alone, once a chunk was given up: a row takes a thousandth."""


class RowEncoder:
    """Encodes chunks of rows as a task wants them. Cheap to build again in a worker process."""

    def __init__(self, facts: TokenizerFacts, settings: EncodeSettings, encoding: Encoding = LANGUAGE) -> None:
        self.codec = Codec(facts)
        self.settings = settings = (
            settings if encoding.train_on is None else replace(settings, train_on=encoding.train_on)
        )
        self.encoding = encoding
        self._templates = _Templates(self.codec, settings) if facts.template is not None else None

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return self._templates is not None

    def encode(self, rows: Sequence[Row], place: Place) -> EncodedRows:
        """The rows' tokens and weights. `place(position)`: file and line of a row, for errors of the template and for the
        tokenizer that does not come to an end on a row (`TokenizerLimit`)."""
        try:
            with self.codec.allowance.of():
                return self._encode(rows, place)
        except TokenizerLimit as limit:
            raise limit.at(self._astray(rows, place, limit)) from None

    def _astray(self, rows: Sequence[Row], place: Place, limit: TokenizerLimit) -> str:
        """The row on which the tokenizer goes astray, where looking for it is safe; else all of them."""
        # not while one already takes ever more memory
        if len(rows) > 1 and not limit.in_memory:
            for number, row in enumerate(rows):
                try:
                    with self.codec.allowance.of(_SECONDS_TO_LOOK):
                        self._encode([row], partial(_shifted, place, number))
                except TokenizerLimit:
                    return place(number)
        return place(0) if len(rows) == 1 else f"{place(0)} to {place(len(rows) - 1)}"

    def _encode(self, rows: Sequence[Row], place: Place) -> EncodedRows:
        shaped = [self._shaped(row) for row in rows]
        # nearly every chunk: rows of one file have one shape
        if len({type(row) for row in shaped}) == 1:
            return self._encode_alike(shaped, place)
        out, at = EncodedRows(), 0
        # neighbours only, so that rows keep their order
        for _, group in groupby(shaped, key=type):
            alike = list(group)
            _merge(out, self._encode_alike(alike, partial(_shifted, place, at)), at)
            at += len(alike)
        return out

    def _of_language(self) -> RowEncoder:
        """The same tokenizer and templates for rows of language models."""
        found = copy.copy(self)
        found.encoding = LANGUAGE
        return found

    def _shaped(self, row: Row) -> Row:
        # without a template, or for a task that wants none, the row stands as pieces
        if isinstance(row, ChatRow) and row.plain is not None and not (self._templates and self.encoding.chats):
            return row.plain
        return row

    def _encode_alike(self, rows: list[Row], place: Place) -> EncodedRows:
        kind = type(rows[0]) if rows else TextRow
        if (encode := self.encoding.encoders.get(kind)) is not None:
            return encode(self.codec, rows, self.settings)
        if (compose := self.encoding.composed.get(kind)) is not None:
            return compose(rows, self._of_language().encode, place)
        if kind is ChatRow and self.encoding.chats:
            if self._templates is None:
                raise no_template()
            return encode_chats(
                self.codec, self._templates.render_rows, cast(list[ChatRow], rows), self.settings, place
            )
        raise RecipeError(
            f"task {self.encoding.task} cannot train on {_KINDS.get(kind, 'rows of this format')}",
            where=place(0),
            fix=_other_format(self.encoding),
        )


def _other_format(encoding: Encoding) -> str:
    if encoding.chats:
        return (
            "to train on a part of them all the same, name its format: `format: messages`, `instruction`, `text` or "
            "`prompt-completion` (with `columns`)"
        )
    return "another `task`; or name what is in the rows: `data.format`, with `data.columns` where they are called otherwise"


_KINDS = {
    TextRow: "plain text (format text)",
    PiecesRow: "text whose parts are marked (formats prompt-completion, segments)",
    ChatRow: "conversations (format messages)",
    PreferenceRow: "answers that are judged or compared (format preference)",
    LabelRow: "texts with labels (format classification)",
    TagRow: "words with tags (format token-classification)",
    PairRow: "pairs of source and target (format seq2seq)",
    ContrastRow: "texts that are compared (format embedding)",
}


class _Templates:
    """The chat template, and the one for rows with tools where there are two."""

    def __init__(self, codec: Codec, settings: EncodeSettings) -> None:
        self._codec = codec
        self._settings = settings
        assert codec.facts.template is not None
        self._plain = self._bound(codec.facts.template)
        own = codec.facts.tool_template
        self._with_tools = self._plain if own is None else self._bound(own)

    def _bound(self, source: str) -> BoundTemplate:
        facts = self._codec.facts
        return BoundTemplate(
            source,
            {**facts.template_variables, **facts.template_kwargs},
            tokens=self._codec.added,
            stops=self._codec.stops,
            train_on=self._settings.train_on,
            thoughts=self._settings.thoughts,
        )

    def render_rows(self, rows: Sequence[ChatRow]) -> list[Outcome]:
        """What becomes of each row, up to one on which its template breaks."""
        outcomes: list[Outcome] = []
        for tools, group in groupby(rows, key=lambda row: self._with_tools if row.tools else self._plain):
            outcomes += tools.render_rows(list(group))
            # the chunk is lost with this row, so those after it need no rendering
            if isinstance(outcomes[-1], ModelError):
                break
        return outcomes


def _shifted(place: Place, by: int, position: int) -> str:
    return place(by + position)


def no_template() -> ModelError:
    """Conversations, and a tokenizer that does not know how to write them."""
    return ModelError(
        "the data holds conversations, and the tokenizer has no chat template",
        fix="use an instruct variant of the base; or give a template: `model.chat_template: FILE`; "
        "or write the rows as prompt and completion",
    )


def _merge(out: EncodedRows, part: EncodedRows, at: int) -> None:
    out.ids.extend(part.ids)
    out.lengths += part.lengths
    out.run_lengths += part.run_lengths
    out.run_weights += part.run_weights
    out.kept += [row + at for row in part.kept]
    out.refused |= {row + at: reason for row, reason in part.refused.items()}
    out.hits += [RowHit(hit.check, hit.row + at, hit.message) for hit in part.hits]
    out.parts += part.parts
    out.labels += part.labels
