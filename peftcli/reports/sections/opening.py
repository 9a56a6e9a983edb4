"""The top of the page: which run, the verdict, the figures that matter, what looks suspicious."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.reports import numbers
from peftcli.reports.checks import Check, Outcome
from peftcli.reports.folder import RunFacts
from peftcli.reports.markup import Markup, join, tag
from peftcli.reports.record import Failure, RunRecord
from peftcli.reports.scores import LOSS, Score, headline_scores, metric_label
from peftcli.reports.sections.parts import amount, bound, details
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


def masthead(run: RunFacts) -> Markup:
    """Name of the run and the line that says what it was."""
    record = run.record
    facts = [
        ("Method", record.method),
        ("Base", short_path(record.base)),
        ("Task", record.task),
        ("Seed", str(record.seed)),
        ("Started", record.started.replace("T", " ")[:16]),
    ]
    pairs = [
        tag("div", tag("dt", name), tag("dd", clipped(value, _MAX_NAME), dir="auto")) for name, value in facts if value
    ]
    return tag(
        "header",
        tag("p", "Run report", class_="eyebrow"),
        tag("h1", clipped(run.name, _MAX_NAME), dir="auto"),
        tag("dl", pairs, class_="identity"),
        class_="masthead",
    )


def verdict_section(run: RunFacts, verdict: Verdict, checks: Sequence[Check]) -> Markup:
    """The verdict in words, then in figures, then the checks behind it."""
    words = tag(
        "div",
        tag("h2", verdict.headline, class_="headline", id="verdict-title"),
        [tag("p", clipped(bound(sentence), _MAX_NAME * 2), class_="sentence") for sentence in verdict.sentences],
        tag("p", bound(verdict.basis), class_="basis") if verdict.basis else None,
        _why(run.record.failure),
        class_="words",
    )
    return tag(
        "section",
        words,
        tag("dl", tiles, class_="tiles") if (tiles := _tiles(run.record)) else None,
        _check_list(verdict, checks),
        id="verdict",
        class_=f"verdict {verdict.grade}",
        aria_labelledby="verdict-title",
    )


def _why(failure: Failure | None) -> Markup | None:
    if failure is None:
        return None
    code = f"{clipped(failure.error, _MAX_NAME)}, exit code {failure.exit_code}"
    return tag(
        "div",
        tag("h3", "Why"),
        tag("pre", clipped(failure.message, _MAX_MESSAGE), dir="auto"),
        tag("p", f"{code}: {exit_code_meaning(failure.exit_code)}.", class_="note"),
        class_="why",
    )


def _tiles(record: RunRecord) -> Markup:
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
    return join(tiles)


def _beside_base(base_bytes: int) -> str:
    return f"{numbers.data_size(base_bytes)} with the base alone" if base_bytes else ""


def _score_tile(score: Score) -> Markup:
    label = "Evaluation loss" if score.metric == LOSS else metric_label(score.metric).capitalize()
    below = f"from {score.value('base')} ({score.change})" if score.base is not None else "the base was not measured"
    return _tile(label, score.value("tuned"), below, score.tuned, style=score.relation)


def _tile(label: str, value: str, below: str, exact: float | None, style: str = "plain") -> Markup:
    number = tag("dd", amount(exact, value), class_="figure")
    note = tag("dd", bound(below), class_="below")
    return tag("div", tag("dt", clipped(label, _MAX_NAME)), number, note, class_=f"tile {style}")


def _check_list(verdict: Verdict, checks: Sequence[Check]) -> Markup:
    open_ones = [check for check in checks if check.outcome != "clear"]
    clear = [check for check in checks if check.outcome == "clear"]
    folded = details(_count_clear(len(clear)), tag("ul", map(_check, clear), class_="checks")) if clear else None
    shown = tag("ul", map(_check, open_ones), class_="checks") if open_ones else None
    heading = tag("h3", "Anything suspicious?")
    return tag("div", heading, tag("p", verdict.trust, class_="trust"), shown, folded, class_="trust-block")


def _count_clear(number: int) -> str:
    return f"{number} check{'s' if number > 1 else ''} found nothing"


def _check(check: Check) -> Markup:
    mark, word = _MARKS[check.outcome]
    badge = tag("span", tag("span", mark, aria_hidden="true"), tag("span", word, class_="unseen"), class_="mark")
    text = tag("span", tag("strong", check.name), " ", clipped(bound(check.text), 1000))
    return tag("li", badge, text, class_=check.outcome)
