"""What a metric is: numbers of each row that add up, and a function of their sum.

The sum over any choice of rows is then the metric of these rows, which is all that a bootstrap interval, a score per
source and a paired comparison need. A mean has two such numbers a row, BLEU ten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from peftcli.models.heads import SEVERAL, SINGLE
from peftcli.reports.metric_facts import Better, MetricFacts
from peftcli.tasks.labels.labelled import Labelled
from peftcli.tasks.preferences.scores import Preferences
from peftcli.tasks.vectors.found import Vectors

Needs = Literal["losses", "generations", "labels", "preferences", "likelihoods", "vectors"]


class Losses(Protocol):
    """Scores of rows by the task; float64 arrays, (rows,)."""

    @property
    def sums(self) -> np.ndarray:
        """Weighted negative log-likelihood, summed over targets, in nats."""

    @property
    def weights(self) -> np.ndarray:
        """Sum of the weights."""

    @property
    def correct(self) -> np.ndarray:
        """Targets that the model ranks first."""

    @property
    def targets(self) -> np.ndarray:
        """Number of targets."""


@dataclass(frozen=True)
class AnswerPair:
    """A generated text and what the row holds in its place, both without special tokens."""

    prediction: str
    reference: str


def ratio(totals: np.ndarray) -> np.ndarray:
    """The first of two numbers over the second, (..., 2) -> (...); NaN where nothing was counted."""
    with np.errstate(divide="ignore", invalid="ignore"):
        result: np.ndarray = totals[..., 0] / totals[..., 1]
    return result


@dataclass(frozen=True)
class Metric:
    """A metric; one of `losses`, `answers`, `labels`, `preferences`, `likelihoods` and `vectors`
    is given."""

    better: Better
    """Which way is an improvement."""
    losses: Callable[[Losses], np.ndarray] | None = None
    """Additive numbers of each row, (rows, k), from the task's scores."""
    answers: Callable[[Sequence[AnswerPair]], np.ndarray] | None = None
    """The same from generated texts."""
    labels: Callable[[Labelled], np.ndarray] | None = None
    """The same from what the model says of labelled rows or words."""
    preferences: Callable[[Preferences], np.ndarray] | None = None
    """The same from what the model makes of compared answers."""
    likelihoods: Callable[[Preferences], np.ndarray] | None = None
    """The same from the log-probabilities of compared answers."""
    vectors: Callable[[Vectors], np.ndarray] | None = None
    """The same from one vector of each text."""
    problems: tuple[str, ...] = (SINGLE, SEVERAL)
    """Kinds of labels, or of compared answers, that it has a meaning for."""
    additive: bool = True
    """Whether numbers of rows may be added up; else `value` is given those of all rows, (rows, k) -> one value."""
    value: Callable[[np.ndarray], np.ndarray] = ratio
    """(..., k) sums over rows -> (...) values."""
    packages: tuple[str, ...] = ()
    """Import names of packages that it needs beyond peftcli's own."""
    fraction: bool = False
    """A share of rows or tokens, 0 to 1."""
    smooth: bool = False
    """Moves with the last bits of the arithmetic and no further, as a loss does."""
    unit: str = ""
    """What a value is counted in, for people."""
    counts_loss: bool = False
    """Whether it is counted in what the task's loss is."""
    remark: Callable[[float, float], str | None] | None = None
    """What a reader must know of its values of base and tuned model, if anything."""

    def __post_init__(self) -> None:
        if len(self._read) != 1:
            raise ValueError("a metric reads losses, answers, labels, preferences, likelihoods or vectors")

    @property
    def _read(self) -> list[Needs]:
        fields: dict[Needs, object] = {
            "losses": self.losses,
            "generations": self.answers,
            "labels": self.labels,
            "preferences": self.preferences,
            "likelihoods": self.likelihoods,
            "vectors": self.vectors,
        }
        return [needs for needs, given in fields.items() if given is not None]

    @property
    def facts(self) -> MetricFacts:
        """What record, training loop, lock and report are told of it."""
        return MetricFacts(better=self.better, fraction=self.fraction, smooth=self.smooth, unit=self.unit)

    @property
    def needs(self) -> Needs:
        """What of the model a metric looks at: losses of the rows, answers that are generated first, labels, ..."""
        return self._read[0]

    def of_all(self, numbers: np.ndarray) -> float:
        """The metric of rows, from the numbers of each."""
        return float(self.value(numbers.sum(axis=0) if self.additive else numbers))


def mean_over_answers(score: Callable[[AnswerPair], float]) -> Callable[[Sequence[AnswerPair]], np.ndarray]:
    """Additive numbers (score, 1) of each answer, so that `ratio` gives the mean score."""

    def rows(answers: Sequence[AnswerPair]) -> np.ndarray:
        return np.array([(score(answer), 1.0) for answer in answers], dtype=np.float64).reshape(-1, 2)

    return rows
