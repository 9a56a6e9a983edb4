"""The first thing a report says: did it learn, how much over the base, can the result be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from peftcli import errors
from peftcli.reports.checks import Check
from peftcli.reports.record import EvaluationRecord, RunRecord
from peftcli.reports.scores import LOSS, Score, headline_scores, is_leaked, metric_label, scores

Grade = Literal["learned", "mixed", "unclear", "worse", "leaked", "unmeasured", "interrupted", "failed"]

_HEADLINES: dict[Grade, str] = {
    "learned": "It learned.",
    "mixed": "Better in part, worse in part.",
    "unclear": "No clear change.",
    "worse": "It got worse.",
    "leaked": "Measured on rows that it was trained on.",
    "unmeasured": "Trained, but not measured.",
    "interrupted": "Interrupted.",
    "failed": "The run failed.",
}


_SAID = (("clear", False), ("not clear", True))


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
    chosen = [score for score in headline_scores(record) if score.measured]
    sentences = [describe(score) for score in chosen]
    if grade in ("failed", "interrupted"):
        sentences.insert(0, _stopped(record))
    elif not sentences:
        sentences = ["No evaluation of both base and tuned model was recorded."]
    return Verdict(grade, _HEADLINES[grade], sentences, _basis(chosen, record.evaluation), _trust(grade, checks))


def _grade(record: RunRecord) -> Grade:
    if record.status == "failed" or record.status == "interrupted":
        return record.status
    relations = {score.relation for score in scores(record)} - {"unmeasured"}
    if not relations:
        return "unmeasured"
    # even a real difference on rows that were trained on says nothing of new ones: before better and worse
    if is_leaked(record):
        return "leaked"
    if {"better", "worse"} <= relations:
        return "mixed"
    for relation, grade in (("better", "learned"), ("worse", "worse")):
        if relation in relations:
            return grade  # type: ignore[return-value]
    return "unclear"


def _stopped(record: RunRecord) -> str:
    of_planned = f" of {record.planned_steps:,}" if record.planned_steps else ""
    if record.status == "interrupted":
        return f"It stopped after step {record.steps:,}{of_planned}; peft resume continues from the last checkpoint."
    return f"It stopped after step {record.steps:,}{of_planned}."


def _basis(chosen: Sequence[Score], evaluation: EvaluationRecord) -> str:
    """On what the differences rest: the rows, how they were compared, and whether chance explains them."""
    if not chosen:
        return ""
    # equal counts: every scored row
    kind = "rows that were trained on too" if evaluation.leaked_rows == evaluation.rows else "held-out rows"
    parts = [f"measured on {evaluation.rows:,} {kind}"] if evaluation.rows else []
    if 0 < evaluation.leaked_rows < (evaluation.rows or 0):
        parts.append(f"{evaluation.leaked_rows:,} of them were trained on too")
    tested = [score for score in chosen if score.difference is not None]
    if tested:
        tests = " and ".join(dict.fromkeys(score.difference.test for score in tested if score.difference is not None))
        parts.append(f"compared in pairs ({tests}): {_clear(tested)} at the 95 % level")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _clear(tested: Sequence[Score]) -> str:
    """`clear`, `not clear`, or which of the scores is which."""
    found = {said: [each for each in tested if (each.relation == "unclear") == unclear] for said, unclear in _SAID}
    if not all(found.values()):
        return next(said for said, scores in found.items() if scores)
    return ", ".join(f"{' and '.join(metric_label(each.metric) for each in found[said])} {said}" for said, _ in _SAID)


def describe(score: Score) -> str:
    """`Exact match rose from 1.50 % to 94.2 % (+92.7 points).`"""
    label = metric_label(score.metric)
    name = "Evaluation loss" if score.metric == LOSS else label[:1].upper() + label[1:]
    if score.base is None or score.tuned is None:
        return f"{name} was not measured for both models."
    if score.base == score.tuned:
        return f"{name} stayed at {score.value('base')}."
    verb = "fell" if score.tuned < score.base else "rose"
    return f"{name} {verb} from {score.value('base')} to {score.value('tuned')} ({score.change})."


def _trust(grade: Grade, checks: Sequence[Check]) -> str:
    bad = sum(check.outcome == "bad" for check in checks)
    warned = sum(check.outcome == "warn" for check in checks)
    if bad:
        return f"{bad} reason{'s' if bad > 1 else ''} not to trust this result."
    if warned:
        return f"{warned} thing{'s' if warned > 1 else ''} to look at before trusting this result."
    if grade in ("failed", "interrupted"):
        return "The run did not finish: what is here says little about what it would have become."
    if checks:
        return f"Nothing suspicious in {len(checks)} checks."
    return "Too little was recorded to check this result."


def exit_code_meaning(code: int) -> str:
    """What an exit code stands for, in the words of `peftcli.errors`."""
    if code in errors.SIGNAL_CODES:
        return errors.SIGNAL_CODES[code].replace("`", "")
    for error in _error_classes(errors.PeftcliError):
        if error.exit_code == code:
            return error.summary.replace("`", "")
    return errors.PeftcliError.summary.replace("`", "")


def _error_classes(root: type[errors.PeftcliError]) -> list[type[errors.PeftcliError]]:
    return [found for child in root.__subclasses__() for found in (child, *_error_classes(child))]
