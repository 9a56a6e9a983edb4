"""Rows and findings for the terminal: what is trained, what is context, what is special."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Protocol

from peftcli.reports.record import DataRow, Span
from peftcli.streams import wants_colour
from peftcli.visible import reveal

_COLOURS = {"trained": "\x1b[32m", "context": "\x1b[2m", "special": "\x1b[33m"}
_UNDERLINE = "\x1b[4m"
_RESET = "\x1b[0m"


class FindingLike(Protocol):
    """What is shown of a finding."""

    @property
    def check(self) -> str:
        """Name of the check."""

    @property
    def severity(self) -> str:
        """`fail` or `warn`."""

    @property
    def message(self) -> str:
        """What is wrong."""

    @property
    def file(self) -> str:
        """The file as the recipe names it."""

    @property
    def row(self) -> int:
        """Its line or row, from 1; of the first, where there are many."""


def _coloured() -> bool:
    return wants_colour(sys.stdout)


def rows_text(rows: Sequence[DataRow], ids: Sequence[str] = ()) -> str:
    """Each row under its origin, and under it its `ids` where they are given. What carries loss is green or, where it is
    a special token, underlined; without colours it stands in [[ ]]."""
    blocks = []
    for number, row in enumerate(rows):
        counts = "" if row.tokens is None else f": {row.tokens} tokens, {row.trained_tokens} trained"
        head = f"{reveal(row.origin)}{counts}"
        blocks.append("\n".join([head, "".join(_runs(row)), *ids[number : number + 1]]))
    legend = (
        "green: trained, dim: context, yellow: special, underlined where it is trained"
        if _coloured()
        else "[[trained, with the special tokens that end an answer]] context <special>"
    )
    return "\n\n".join([*blocks, f"({legend})"]) if blocks else ""


def _runs(row: DataRow) -> Iterator[str]:
    """The pieces of a row; those that carry loss, special or not, within one pair of marks."""
    # neighbours of one kind go into one pair of marks: a mark for each piece would hide the text
    for (trained, weight), spans in groupby(row.spans, lambda span: (_is_trained(span), span.weight)):
        text = "".join(_piece(reveal(span.text), span.kind, trained) for span in spans)
        weighed = "" if weight is None else f"({weight:g} x) "
        yield f"[[{weighed}{text}]]" if trained and not _coloured() else f"{weighed}{text}"


def _is_trained(span: Span) -> bool:
    return span.kind == "trained" if span.trained is None else span.trained


def _piece(text: str, kind: str, trained: bool) -> str:
    if _coloured():
        return f"{_COLOURS[kind]}{_UNDERLINE if trained and kind == 'special' else ''}{text}{_RESET}"
    # a special token of the usual <|name|> form is its own mark
    return f"<{text}>" if kind == "special" and not text.startswith("<") else text


def ids_text(ids: Sequence[int], weights: Sequence[float]) -> str:
    """Token ids in a row's order; those that carry loss within `[[ ]]`."""
    parts = []
    for trained, pairs in groupby(zip(ids, weights, strict=True), lambda pair: pair[1] > 0):
        text = " ".join(str(token) for token, _ in pairs)
        parts.append(f"[[{text}]]" if trained else text)
    return "ids: " + " ".join(parts)


def findings_text(findings: Sequence[FindingLike]) -> str:
    """One line for each finding of the doctor."""
    if not findings:
        return "the data doctor found nothing"
    return "\n".join(f"{f.severity:<4}  {f.check}: {f.message}  ({f.file}:{f.row})" for f in findings)
