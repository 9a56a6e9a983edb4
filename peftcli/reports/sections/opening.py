"""The top of the page: which run, the verdict, the figures that matter, what looks suspicious."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peftcli.reports import numbers
from peftcli.reports.checks import Check, Outcome
from peftcli.reports.continued import continued_from
from peftcli.reports.folder import RunFacts
from peftcli.reports.record import Failure, RunRecord
from peftcli.reports.scores import LOSS, Score, headline_scores, metric_label
from peftcli.reports.sections.parts import Amount, bound
from peftcli.reports.verdict import Verdict, exit_code_meaning
from peftcli.reports.visible import clipped, short_path

_MAX_NAME = 200
_MAX_MESSAGE = 8000
_MARKS: dict[Outcome, tuple[str, str]] = {
    "clear": ("✓", "Fine"),
    "note": ("i", "Note"),
    "warn": ("!", "Look"),
    "bad": ("✕", "Bad"),
}


@dataclass(frozen=True)
class Masthead:
    """Name of the run, and what it was."""

    name: str
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class Tile:
    """A figure that matters. `style`: whether it got better or worse."""

    label: str
    number: Amount
    below: str
    style: str = "plain"


@dataclass(frozen=True)
class ShownCheck:
    """A check with its mark, and the mark in a word for those who do not see it."""

    outcome: Outcome
    mark: str
    word: str
    name: str
    text: str


@dataclass(frozen=True)
class ShownFailure:
    """Why a run failed, and what its exit code says."""

    message: str
    code: str


@dataclass(frozen=True)
class Opening:
    """The verdict in words, then in figures, then the checks that it rests on."""

    grade: str
    headline: str
    sentences: list[str]
    basis: str
    failure: ShownFailure | None
    tiles: list[Tile]
    trust: str
    open_checks: list[ShownCheck]
    clear_checks: list[ShownCheck]
    clear_title: str


def masthead(run: RunFacts) -> Masthead:
    """Name of the run and the line that says what it was."""
    record = run.record
    facts = [
        # only what the record holds: an older one, or one of another tool, may lack any of it
        ("Method", record.method),
        ("Base", short_path(record.base)),
        ("Continued from", continued_from(record)),
        ("Task", record.task),
        ("Seed", str(record.seed)),
        ("Started", record.started.replace("T", " ")[:16]),
    ]
    return Masthead(clipped(run.name, _MAX_NAME), [(name, clipped(value, _MAX_NAME)) for name, value in facts if value])


def opening(run: RunFacts, verdict: Verdict, checks: Sequence[Check]) -> Opening:
    """All that stands above the sections."""
    clear = [_check(check) for check in checks if check.outcome == "clear"]
    return Opening(
        verdict.grade,
        verdict.headline,
        [clipped(bound(sentence), _MAX_NAME * 2) for sentence in verdict.sentences],
        bound(verdict.basis),
        _failure(run.record.failure),
        _tiles(run.record),
        verdict.trust,
        [_check(check) for check in checks if check.outcome != "clear"],
        clear,
        f"{len(clear)} check{'s' if len(clear) > 1 else ''} found nothing",
    )


def _failure(failure: Failure | None) -> ShownFailure | None:
    if failure is None:
        return None
    code = f"{clipped(failure.error, _MAX_NAME)}, exit code {failure.exit_code}"
    return ShownFailure(clipped(failure.message, _MAX_MESSAGE), f"{code}: {exit_code_meaning(failure.exit_code)}.")


def _tiles(record: RunRecord) -> list[Tile]:
    tiles = [_score_tile(score) for score in headline_scores(record)]
    trainable, total = record.parameters.trainable, record.parameters.total
    if total:
        of_total = f"{numbers.percent(trainable / total)} of {numbers.compact(total)}"
        tiles.append(_tile("Trained parameters", numbers.compact(trainable), of_total, trainable))
    if record.steps:
        speed = f"{numbers.compact(record.tokens_per_second)} tokens/s, {record.steps:,} steps"
        tiles.append(_tile("Training time", numbers.duration(record.seconds.training), speed, record.seconds.training))
    if peak := record.peak_memory_bytes:
        base = record.model_memory_bytes
        tiles.append(_tile("Peak memory", numbers.data_size(peak), _beside_base(base), peak))
    return tiles


def _beside_base(base_bytes: int) -> str:
    return f"{numbers.data_size(base_bytes)} with the base alone" if base_bytes else ""


def _score_tile(score: Score) -> Tile:
    label = "Evaluation loss" if score.metric == LOSS else metric_label(score.metric).capitalize()
    below = f"from {score.value('base')} ({score.change})" if score.base is not None else "the base was not measured"
    return _tile(label, score.value("tuned"), below, score.tuned, style=score.relation)


def _tile(label: str, value: str, below: str, exact: float | None, style: str = "plain") -> Tile:
    return Tile(clipped(label, _MAX_NAME), Amount(exact, value), bound(below), style)


def _check(check: Check) -> ShownCheck:
    mark, word = _MARKS[check.outcome]
    return ShownCheck(check.outcome, mark, word, check.name, clipped(bound(check.text), 1000))
