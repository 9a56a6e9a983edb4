"""Answers of several models on one screen, each after a mark that says whose it is, piece by piece."""

from __future__ import annotations

from collections.abc import Mapping


class Labelled:
    """Writes pieces as they come; silent where all is printed at the end. `marks`: label -> what stands before."""

    def __init__(self, marks: Mapping[str, str], *, silent: bool = False) -> None:
        self.marks = marks
        self.silent = silent
        self._open: str | None = None

    def write(self, label: str, piece: str) -> None:
        """Writes a piece, behind the mark where an answer begins; that of another label ends its line."""
        if self.silent:
            return
        if self._open != label:
            self.end()
            print(self.marks[label], end="")
            self._open = label
        print(piece, end="", flush=True)

    def end(self) -> None:
        """Ends the line; the next piece begins a new answer."""
        if self._open is not None:
            print(flush=True)
        self._open = None
