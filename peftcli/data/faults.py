"""Faults of data rows, gathered: the first few are reported with file and line, the rest are counted."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice

from peftcli.errors import DataError, Fault

SHOWN = 5
EXCERPT_LENGTH = 60


class RowFault(ValueError):
    """What is wrong with one row; its caller, which knows file and line, turns it into a `Fault`."""

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class FaultLog:
    """Counts every fault of a reading and keeps the first five places, those of one fault together."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], list[str]] = {}
        self.count = 0

    @property
    def faults(self) -> list[Fault]:
        """The faults that are kept, each with its places."""
        return [Fault(message, ", ".join(places), fix) for (message, fix), places in self._places.items()]

    @property
    def shown(self) -> int:
        """Places that are kept."""
        return sum(map(len, self._places.values()))

    def add(self, message: str, where: str, fix: str | None = None) -> None:
        """Counts a fault; its place is kept as long as there is room."""
        self.count += 1
        # kept until five places are known, so that a file with a million faults costs no more memory
        if self.shown < SHOWN:
            self._places.setdefault((message, fix or "correct or remove the row"), []).append(where)

    @contextmanager
    def row(self, where: str) -> Iterator[None]:
        """Turns a `RowFault` of the block into a fault at `where`."""
        try:
            yield
        except RowFault as fault:
            self.add(fault.message, where, fault.fix)

    def raise_any(self) -> None:
        """Raises one `DataError` with the first faults and the count of all, if there were any."""
        if not self.count:
            return
        only, *others = self.faults
        if self.count == 1:
            raise DataError(only.message, where=only.where, fix=only.fix)
        shown = f"the first {self.shown}" if self.count > self.shown else "all"
        if others:
            raise DataError(f"{self.count:,} rows cannot be used; {shown}:", faults=self.faults)
        raise DataError(f"{self.count:,} rows cannot be used; {shown}: {only.message}", where=only.where, fix=only.fix)


def excerpt(text: str, length: int = EXCERPT_LENGTH) -> str:
    """A short quotation in which control characters are escaped, fit for any terminal."""
    # one character less for the ellipsis
    cut = text if len(text) <= length else text[: length - 1] + "…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in cut)


def listed(names: Collection[object], most: int = 12) -> str:
    """Names for a message: the first ones, short, and how many more there are."""
    shown = ", ".join(excerpt(str(name)) for name in islice(names, most))
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def place(file: str, line: int, *, by_row: bool) -> str:
    """`file:line`, or `file, row N` where the container has no lines."""
    return f"{file}, row {line}" if by_row else f"{file}:{line}"
