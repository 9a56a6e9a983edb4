"""What a command says of a run in a terminal: verdict, metrics, what to look at, where everything lies."""

from __future__ import annotations

from peftcli.reports.checks import Check, Outcome, run_checks
from peftcli.reports.folder import RunFacts
from peftcli.reports.record import EvaluationRecord
from peftcli.reports.scores import Score, metric_label, scores, scores_of
from peftcli.reports.tables import WIDTH, paint, text_table, wrapped
from peftcli.reports.verdict import judge
from peftcli.visible import reveal

_MARGIN = 6
_GRADES = {"learned": "green", "worse": "red", "failed": "red", "leaked": "red"}
_OUTCOMES: dict[Outcome, str] = {"bad": "red", "warn": "yellow"}
"""Outcomes of checks that are worth a line, with their colours."""


def score_table(evaluation: EvaluationRecord, *, width: int = WIDTH, colour: bool = False) -> str:
    """Metrics of base and tuned model, as `peft evaluate` prints them; of a model that was scored alone, its own."""
    if not evaluation.base:
        own = [
            [metric_label(score.metric), score.value("tuned"), _between(score, score.tuned_interval)]
            for score in scores_of(evaluation)
        ]
        return text_table(["metric", "model", "95 %"], own, numeric=(1,), width=width, colour=colour)
    rows = [
        [
            metric_label(score.metric),
            score.value("base"),
            _between(score, score.base_interval),
            score.value("tuned"),
            _between(score, score.tuned_interval),
            score.change,
        ]
        for score in scores_of(evaluation)
    ]
    headers = ["metric", "base", "95 %", "tuned", "95 %", "change"]
    # no interval at all: two empty columns would only take room
    if not any(row[2] or row[4] for row in rows):
        rows = [[row[0], row[1], row[3], row[5]] for row in rows]
        return text_table(["metric", "base", "tuned", "change"], rows, numeric=(1, 2, 3), width=width, colour=colour)
    return text_table(headers, rows, numeric=(1, 3, 5), width=width, colour=colour)


def _between(score: Score, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    # the unit stands at the value already
    return "–".join(score.shown(end).removesuffix(" %") for end in interval)


def run_summary(run: RunFacts, *, width: int = WIDTH, colour: bool = False) -> str:
    """The verdict, the metrics and what to look at: what a command prints when a run ends."""
    checks = run_checks(run)
    verdict = judge(run.record, checks)
    lines = [paint(verdict.headline, _GRADES.get(verdict.grade, "yellow"), enabled=colour)]
    lines += [line for text in (*verdict.sentences, verdict.basis) for line in wrapped(text, width)]
    if scores(run.record):
        lines += ["", score_table(run.record.evaluation, width=width, colour=colour)]
    lines += ["", *wrapped(verdict.trust, width)]
    for check in checks:
        if check.outcome in _OUTCOMES:
            lines += _looked_at(check, width, colour=colour)
    return "\n".join(lines)


def _looked_at(check: Check, width: int, *, colour: bool) -> list[str]:
    """The outcome of a check in a margin, its text beside it."""
    word = paint(f"{check.outcome:>{_MARGIN - 2}}", _OUTCOMES[check.outcome], enabled=colour)
    first, *rest = wrapped(f"{check.name}: {check.text}", width - _MARGIN)
    return [f"{word}  {first}", *(" " * _MARGIN + line for line in rest)]


def run_ending(run: RunFacts, folder: str, *, colour: bool = False) -> str:
    """`run_summary`, then where everything lies and what one does next; nothing in it drives a terminal but our colours."""
    folder = reveal(folder)
    lines = [run_summary(run, colour=colour), "", f"run       {folder}", f"report    {folder}/report.html"]
    if run.record.adapter is not None:
        lines.append(f"adapter   {folder}/{reveal(run.record.adapter)}")
        lines.append(f"next      peft generate {folder} --prompt '...' --base; peft merge {folder} --output merged")
    return "\n".join(lines)
