"""Labels that hardly occur, or are all the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from peftcli.data.doctor.base import Check, RowBatch
from peftcli.data.rows import Label, LabelRow

MIN_ROWS = 20
MAX_RATIO = 20


class LabelCounts:
    """Counts labels over a source and remembers where each was first."""

    def __init__(self) -> None:
        self.counts: dict[Label, int] = {}
        self.first: dict[Label, tuple[str, int]] = {}

    def add(self, batch: RowBatch, file: str, lines: Sequence[int]) -> None:
        """Counts the labels of a chunk."""
        for row, line in zip(batch.rows, lines, strict=True):
            for label in row.labels if isinstance(row, LabelRow) else ():
                if isinstance(label, float):
                    continue  # a measured value, which no two rows need to share
                self.counts[label] = self.counts.get(label, 0) + 1
                self.first.setdefault(label, (file, line))

    def hits(self) -> Iterable[tuple[str, int, str]]:
        """Where each rare label first stands; nothing for fewer than `MIN_ROWS` labels."""
        total = sum(self.counts.values())
        if total < MIN_ROWS:
            return
        most = max(self.counts, key=lambda label: self.counts[label])
        if len(self.counts) == 1:
            yield *self.first[most], f"every row has the label {most!r}"
        for label, count in self.counts.items():
            if count * MAX_RATIO < self.counts[most]:
                yield (
                    *self.first[label],
                    f"label {label!r} has {count:,} of {total:,} rows, {most!r} {self.counts[most]:,}",
                )


CHECK = Check("warn", "labels that hardly occur", collect=LabelCounts)
