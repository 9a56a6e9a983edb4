"""Rows as people read them: pieces of text, each trained, context or special, from the very tensors of training.

Rows of formats that no task trains on yet are shown by their parts (`read_parts`), so that they can be checked too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from peftcli.data.asking import text_of
from peftcli.data.config import DataConfig
from peftcli.data.doctor.base import Finding
from peftcli.data.doctor.run import findings_of
from peftcli.data.encode.source import SourceReader
from peftcli.data.faults import FaultLog
from peftcli.data.rows import (
    ChatRow,
    ContrastRow,
    LabelRow,
    Message,
    PairRow,
    PiecesRow,
    PreferenceRow,
    Row,
    TagRow,
    TextRow,
)
from peftcli.data.sources import resolve
from peftcli.data.store import EncodedRow, Origin

TokenKind = Literal["trained", "context", "special"]


@dataclass(frozen=True)
class TextSpan:
    """A stretch of a row. `weight`: its loss weight (0: context); a special token may be trained too (a stop token)."""

    text: str
    kind: TokenKind
    weight: float = 0.0

    @property
    def trained(self) -> bool:
        """Whether the stretch carries loss."""
        return self.weight > 0

    @property
    def uneven(self) -> float | None:
        """The loss weight where it is another than 0 and 1."""
        return None if self.weight in (0, 1) else self.weight


@dataclass(frozen=True)
class ShownRow:
    """A row for the terminal or the report."""

    spans: list[TextSpan]
    origin: Origin
    tokens: int
    trained_tokens: int


def row_spans(row: EncodedRow, tokenizer: Any) -> list[TextSpan]:
    """The row's tokens decoded, joined while they are of one kind and weight; together they are the row's whole text,
    before its labels."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    ids, weights = row.input_ids.tolist(), row.weights.tolist()
    spans: list[TextSpan] = []
    at = 0
    for (is_special, weight), group in groupby(
        zip(ids, weights, strict=True), lambda pair: (pair[0] in special, pair[1])
    ):
        end = at + len(list(group))
        kind: TokenKind = "special" if is_special else "trained" if weight > 0 else "context"
        spans.append(TextSpan(_text(ids, at, end, tokenizer), kind, weight))
        at = end
    return [*spans, _name("\nlabels: "), _trained(" ".join(map(str, row.labels)))] if row.labels else spans


def _text(ids: list[int], start: int, end: int, tokenizer: Any) -> str:
    """The text of a stretch as it stands in its row: with the space in front that decoding it alone would lose."""
    if start == 0:
        return text_of(tokenizer, ids[:end], clean_up_tokenization_spaces=False)
    # one token before the stretch keeps the space that a tokenizer drops at the start of a text
    before = text_of(tokenizer, ids[start - 1 : start], clean_up_tokenization_spaces=False)
    both = text_of(tokenizer, ids[start - 1 : end], clean_up_tokenization_spaces=False)
    if both.startswith(before):
        return both[len(before) :]
    # bytes of one character shared between two tokens: decoded alone, with its replacement sign
    return text_of(tokenizer, ids[start:end], clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class SourceParts:
    """Rows of the training sources by their parts, whatever their format; `findings` of checks that need no tokens."""

    format: str
    why: str
    rows_read: int
    rows: list[ShownRow]
    findings: list[Finding]


def read_parts(config: DataConfig, *, folder: Path, limit: int) -> list[SourceParts]:
    """Reads and checks the training sources without encoding them; the first `limit` rows of each are shown.

    What a task would have to predict is `trained`, what it is given is `context`. Raises what `prepare` raises for rows.
    """
    faults = FaultLog()
    found = [_source_parts(config, number, folder, limit, faults) for number in range(len(config.train_sources))]
    faults.raise_any()
    return found


def rows_are_trainable(config: DataConfig, formats: Sequence[str], *, folder: Path) -> bool:
    """Whether the first row of every training source has one of the formats, or one of rows that are plain sequences."""
    faults = FaultLog()
    for section in config.train_sources:
        source = resolve(section, folder)
        columns = config.columns if section.columns is None else section.columns
        reader = SourceReader(source, section.model_copy(update={"rows": 1}), section.format or config.format, columns)
        reader.read_through(faults)
        found = None if reader.detected is None else reader.detected.format
        if found is not None and not found.one_sequence and found.name not in formats:
            return False
    return True


def _source_parts(config: DataConfig, number: int, folder: Path, limit: int, faults: FaultLog) -> SourceParts:
    section = config.train_sources[number]
    source = resolve(section, folder)
    columns = config.columns if section.columns is None else section.columns
    reader = SourceReader(source, section, section.format or config.format, columns)
    shown: list[ShownRow] = []
    for chunk in reader.chunks(faults):
        for row, line in zip(chunk.rows, chunk.lines, strict=True):
            if len(shown) < limit:
                shown.append(ShownRow(part_spans(row), Origin(number, source.names[chunk.file], line), 0, 0))
    reader.scanner.finish()
    name, why = (reader.detected.format.name, reader.detected.why) if reader.detected else ("", "")
    return SourceParts(name, why, reader.rows_read, shown, findings_of([reader.scanner.tallies], config.checks))


def part_spans(row: Row) -> list[TextSpan]:
    """The parts of a row: what is given as context, what is to be predicted as trained, names of parts as special."""
    if isinstance(row, TextRow):
        return [_trained(row.text)]
    if isinstance(row, PiecesRow):
        return [_trained(piece.text, piece.weight) if piece.weight else _context(piece.text) for piece in row.pieces]
    if isinstance(row, ChatRow):
        return _turns(row.messages)
    if isinstance(row, LabelRow):
        pair = [_name("\npair: "), _context(row.pair)] if row.pair else []
        return [_context(row.text), *pair, _name("\nlabel: "), _trained(", ".join(map(str, row.labels)))]
    if isinstance(row, TagRow):
        return [
            span
            for word, tag in zip(row.words, row.tags, strict=True)
            for span in (_context(f"{word} "), _trained(f"{tag}\n"))
        ]
    if isinstance(row, PairRow):
        return [_context(row.source), _name("\ntarget: "), _trained(row.target)]
    if isinstance(row, ContrastRow):
        return _compared(row)
    return _preference(row)


def _compared(row: ContrastRow) -> list[TextSpan]:
    anchor, match, *others = row.texts
    if row.score is not None:
        return [_context(anchor), _name("\nand: "), _context(match), _name("\nscore: "), _trained(f"{row.score:g}")]
    spans = [_context(anchor), _name("\npositive: "), _trained(match)]
    return spans + [span for text in others for span in (_name("\nnegative: "), _context(text))]


def _preference(row: PreferenceRow) -> list[TextSpan]:
    spans = [*_part(row.prompt, answers=False)]
    if row.rejected is None:
        return [*spans, _name(f"\n{'liked' if row.liked else 'disliked'}: "), *_part(row.chosen, answers=True)]
    chosen = [_name("\nchosen: "), *_part(row.chosen, answers=True)]
    return [*spans, *chosen, _name("\nrejected: "), *_part(row.rejected, answers=True)]


def _part(part: str | list[Message], *, answers: bool) -> list[TextSpan]:
    if isinstance(part, list):
        return _turns(part)
    return [_trained(part) if answers else _context(part)]


def _turns(messages: Sequence[Message]) -> list[TextSpan]:
    spans = []
    for message in messages:
        answer = message["role"] == "assistant"
        calls = "".join(f"\n{call['function']}" for call in message.get("tool_calls", ()))
        text = f"{message['content']}{calls}\n"
        spans += [_name(f"{message['role']}: "), _trained(text) if answer else _context(text)]
    return spans


def _trained(text: str, weight: float = 1.0) -> TextSpan:
    return TextSpan(text, "trained", weight)


def _context(text: str) -> TextSpan:
    return TextSpan(text, "context")


def _name(text: str) -> TextSpan:
    return TextSpan(text, "special")
