"""The first thing a report says: did it learn, how much over the base, can the result be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from peftcli import errors
from peftcli.reports.checks import Check
from peftcli.reports.record import RunRecord
from peftcli.reports.scores import Score, metric_label, scores

Grade = Literal["learned", "mixed", "unclear", "worse", "unmeasured", "interrupted", "failed"]

_HEADLINES: dict[Grade, str] = {
    "learned": "It learned.",
    "mixed": "Better in part, worse in part.",
    "unclear": "No clear change.",
    "worse": "It got worse.",
    "unmeasured": "Trained, but not measured.",
    "interrupted": "Interrupted.",
    "failed": "The run failed.",
}


@dataclass(frozen=True)
class Verdict:
    """What a report says first.

    `headline`: two or three words. `sentences`: the measured differences. `basis`: what they rest on.
    `trust`: one line on the checks.
    """

    grade: Grade
    headline: str
    sentences: list[str]
    basis: str
    trust: str


def judge(record: RunRecord, checks: Sequence[Check]) -> Verdict:
    """The verdict of a run from its record and the outcome of its checks."""
    grade = _grade(record)
    chosen = _chosen(record)
    sentences = [describe(score) for score in chosen]
    if grade in ("failed", "interrupted"):
        sentences.insert(0, _stopped(record))
    elif not sentences:
        sentences = ["No evaluation of both base and tuned model was recorded."]
    return Verdict(grade, _HEADLINES[grade], sentences, _basis(chosen, record.evaluation.rows), _trust(checks))


def _grade(record: RunRecord) -> Grade:
    if record.status == "failed" or record.status == "interrupted":
        return record.status
    relations = {score.relation for score in scores(record)} - {"unmeasured"}
    if not relations:
        return "unmeasured"
    if {"better", "worse"} <= relations:
        return "mixed"
    for relation, grade in (("better", "learned"), ("worse", "worse")):
        if relation in relations:
            return grade  # type: ignore[return-value]
    return "unclear"


def _stopped(record: RunRecord) -> str:
    of_planned = f" of {record.planned_steps:,}" if record.planned_steps else ""
    if record.status == "interrupted":
        return f"It stopped after step {record.steps:,}{of_planned}; peft resume goes on from the last checkpoint."
    return f"It stopped after step {record.steps:,}{of_planned}."


def _chosen(record: RunRecord) -> list[Score]:
    """The loss, and the first other metric that is not the loss again."""
    measured = [score for score in scores(record) if score.relation != "unmeasured"]
    losses = [score for score in measured if score.metric == "eval_loss"]
    others = [score for score in measured if score.metric not in ("eval_loss", "eval_perplexity")]
    return [*losses, *others[:1]] or measured[:1]


def _basis(chosen: Sequence[Score], rows: int | None) -> str:
    """On what the differences rest: the rows, and whether the intervals keep apart."""
    if not chosen:
        return ""
    parts = [f"measured on {rows:,} held-out rows"] if rows else []
    with_intervals = [score for score in chosen if score.base_interval and score.tuned_interval]
    if with_intervals:
        apart = all(score.relation != "unclear" for score in with_intervals)
        parts.append(f"the 95 % intervals of base and tuned model {'do not overlap' if apart else 'overlap'}")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def describe(score: Score) -> str:
    """`Exact match rose from 1.50 % to 94.2 % (+92.7 points).`"""
    label = metric_label(score.metric)
    name = "Evaluation loss" if score.metric == "eval_loss" else label[:1].upper() + label[1:]
    if score.base is None or score.tuned is None:
        return f"{name} was not measured for both models."
    if score.base == score.tuned:
        return f"{name} stayed at {score.value('base')}."
    verb = "fell" if score.tuned < score.base else "rose"
    return f"{name} {verb} from {score.value('base')} to {score.value('tuned')} ({score.change})."


def _trust(checks: Sequence[Check]) -> str:
    bad = sum(check.outcome == "bad" for check in checks)
    warned = sum(check.outcome == "warn" for check in checks)
    if bad:
        return f"{bad} finding{'s' if bad > 1 else ''} that forbid{'' if bad > 1 else 's'} trusting this result."
    if warned:
        return f"{warned} thing{'s' if warned > 1 else ''} to look at before trusting this result."
    if checks:
        return f"Nothing suspicious in {len(checks)} checks."
    return "Too little was recorded to check this result."


def exit_code_meaning(code: int) -> str:
    """What an exit code stands for, in the words of `peftcli.errors`."""
    if code in (130, 143):
        return errors.Interrupted.summary.replace("`", "")
    for error in _error_classes(errors.PeftcliError):
        if error.exit_code == code:
            return error.summary.replace("`", "")
    return errors.PeftcliError.summary.replace("`", "")


def _error_classes(root: type[errors.PeftcliError]) -> list[type[errors.PeftcliError]]:
    return [found for child in root.__subclasses__() for found in (child, *_error_classes(child))]
