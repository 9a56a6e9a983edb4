"""`report-users.html`: one page for those who use the model and were not there when it was trained.

What it is for, what it was trained on, how good it is, how it fails, how to run it; the report beside it is the engineer's.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftcli.reports import numbers
from peftcli.reports.card import base_name
from peftcli.reports.checks import run_checks
from peftcli.reports.data_facts import split_facts
from peftcli.reports.failures import Failures
from peftcli.reports.folder import RunFacts
from peftcli.reports.record import RunRecord
from peftcli.reports.sections.comparison import comparison_section
from peftcli.reports.sections.opening import masthead, opening
from peftcli.reports.sections.parts import Section
from peftcli.reports.sections.samples import samples_section
from peftcli.reports.templating import render
from peftcli.reports.verdict import judge
from peftcli.reports.visible import clipped, short_path

_MAX_TEXT = 1200
_MAX_ROWS = 40


@dataclass(frozen=True)
class TrainedOn:
    """(split, source, rows, tokens) of each source."""

    rows: list[tuple[str, str, str, str]]


@dataclass(frozen=True)
class ShownRow:
    """A row that the model scores badly on."""

    origin: str
    tuned: str
    base: str
    text: str | None


@dataclass(frozen=True)
class ShownFailures:
    """`classes`: (label, rows, right, taken for)."""

    worst: list[ShownRow]
    classes: list[tuple[str, str, str, str]]
    note: str | None


@dataclass(frozen=True)
class HowToRun:
    """(what, command)."""

    commands: list[tuple[str, str]]


def render_users(run: RunFacts, failures: Failures) -> str:
    """The page for the model's users, as HTML that stands alone."""
    checks = run_checks(run)
    sections = [samples_section(run), _trained_on(run.record), comparison_section(run), _failures(failures)]
    return render(
        "users.jinja",
        title=clipped(run.name, 120),
        purpose=_purpose(run.record),
        masthead=masthead(run),
        verdict=opening(run, judge(run.record, checks), checks),
        sections=[*(section for section in sections if section is not None), _how_to_run(run.record)],
        footer=clipped(f"Made by peftcli {run.record.version}; the report of the run lies beside this page.", 200),
    )


def _purpose(record: RunRecord) -> str:
    facts = split_facts(record.data, "train")
    names = [short_path(base_name(source.name)) for source in ([] if facts is None else facts.sources)]
    data = ", ".join(names[:3]) or "its training data"
    return clipped(
        f"Made to do what the rows of {data} show ({record.task}). It is {base_name(record.base)} with an adapter of the "
        f"method {record.method}; on other requests nothing was measured.",
        500,
    )


def _trained_on(record: RunRecord) -> Section | None:
    rows = []
    for split in ("train", "validation"):
        facts = split_facts(record.data, split)
        for source in [] if facts is None else facts.sources:
            sizes = [numbers.MISSING if size is None else numbers.count(size) for size in (source.rows, source.tokens)]
            rows.append((split, clipped(short_path(base_name(source.name)), 120), sizes[0], sizes[1]))
    if not rows:
        return None
    lead = f"{numbers.count(record.tokens)} tokens were read in training."
    return Section("trained-on", "Trained on", "users/trained_on.jinja", TrainedOn(rows[:_MAX_ROWS]), lead)


def _failures(failures: Failures) -> Section | None:
    if not failures.worst and not failures.classes:
        return None
    facts = ShownFailures(
        [
            ShownRow(
                clipped(short_path(row.origin), 120),
                numbers.plain(row.tuned),
                numbers.MISSING if row.base is None else numbers.plain(row.base),
                None if row.text is None else clipped(row.text, _MAX_TEXT),
            )
            for row in failures.worst
        ],
        [
            (
                clipped(score.label, 80),
                numbers.count(score.rows),
                numbers.percent(score.right / score.rows),
                numbers.MISSING if score.taken_for is None else clipped(score.taken_for, 80),
            )
            for score in failures.classes[:_MAX_ROWS]
        ],
        failures.note,
    )
    lead = "The held-out rows that it does worst on."
    return Section("failures", "How it fails", "users/failures.jinja", facts, lead)


def _how_to_run(record: RunRecord) -> Section:
    commands = [
        ("One question, and what the base says", 'peft generate RUN --prompt "..." --base'),
        ("A file of questions", "peft generate RUN --input questions.jsonl --output answers.jsonl"),
        ("The whole model, for any other tool", "peft merge RUN --output merged"),
    ]
    return Section("run-it", "How to run it", "users/run.jinja", HowToRun(commands), "RUN is the folder of this page.")
