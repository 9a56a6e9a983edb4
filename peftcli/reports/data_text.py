"""Rows and findings for the terminal: what is trained, what is context, what is special."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Protocol

from peftcli.reports.record import DataRow
from peftcli.reports.visible import reveal

_COLOURS = {"trained": "\x1b[32m", "context": "\x1b[2m", "special": "\x1b[33m"}
_MARKS = {"trained": ("[[", "]]"), "context": ("", ""), "special": ("<", ">")}
_RESET = "\x1b[0m"


class FindingLike(Protocol):
    """What is shown of a finding."""

    @property
    def check(self) -> str: ...

    @property
    def severity(self) -> str: ...

    @property
    def message(self) -> str: ...

    @property
    def file(self) -> str: ...

    @property
    def row(self) -> int: ...


def _coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def rows_text(rows: Sequence[DataRow]) -> str:
    """Each row under its origin; trained text green (in [[ ]] without colours), special tokens yellow."""
    blocks = []
    for row in rows:
        counts = "" if row.tokens is None else f": {row.tokens} tokens, {row.trained_tokens} trained"
        head = f"{row.origin}{counts}"
        blocks.append(head + "\n" + "".join(_piece(reveal(span.text), span.kind) for span in row.spans))
    legend = "green: trained, dim: context, yellow: special" if _coloured() else "[[trained]] context <special>"
    return "\n\n".join([*blocks, f"({legend})"]) if blocks else ""


def _piece(text: str, kind: str) -> str:
    if _coloured():
        return f"{_COLOURS[kind]}{text}{_RESET}"
    before, after = _MARKS[kind]
    # a special token of the usual <|name|> form is its own mark
    return text if kind == "special" and text.startswith("<") else f"{before}{text}{after}"


def findings_text(findings: Sequence[FindingLike]) -> str:
    """One line for each finding of the doctor."""
    if not findings:
        return "the data doctor found nothing"
    return "\n".join(f"{f.severity:<4}  {f.check}: {f.message}  ({f.file}:{f.row})" for f in findings)
