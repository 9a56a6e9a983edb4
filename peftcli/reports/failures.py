"""Where a model fails: the rows that it scores worst on, and the labels that it misses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class WorstRow:
    """A held-out row with a high loss of the tuned model."""

    origin: str
    tuned: float
    base: float | None
    text: str | None = None
    """As the model reads it; None where the rows are not here."""


@dataclass(frozen=True)
class ClassScore:
    """How often rows of one label are told right, and what they are taken for else."""

    label: str
    rows: int
    right: int
    taken_for: str | None = None


@dataclass(frozen=True)
class Failures:
    """All of it. `note`: why texts are missing."""

    worst: list[WorstRow] = field(default_factory=list)
    classes: list[ClassScore] = field(default_factory=list)
    note: str | None = None


def class_scores(pairs: Iterable[tuple[str, str]]) -> list[ClassScore]:
    """By label, from (truth, said), the label with the lowest share of right ones first."""
    said: dict[str, dict[str, int]] = {}
    for truth, told in pairs:
        counts = said.setdefault(truth, {})
        counts[told] = counts.get(told, 0) + 1
    found = []
    for label, counts in said.items():
        wrong = {told: count for told, count in counts.items() if told != label}
        most = max(wrong, key=lambda told: (wrong[told], told)) if wrong else None
        found.append(ClassScore(label, sum(counts.values()), counts.get(label, 0), most))
    return sorted(found, key=lambda score: (score.right / score.rows, score.label))
