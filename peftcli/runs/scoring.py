"""Two evaluations of the same rows as the record holds them: metrics, intervals, paired differences, answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from peftcli.adapters.surgery import disabled
from peftcli.adapters.updates import update_norms
from peftcli.data.facts import DataFacts
from peftcli.evaluation.registry import REPORT_PREFIX, get_metric
from peftcli.evaluation.result import Difference, Evaluation, compare, facts_of
from peftcli.planning.plan import Prepared
from peftcli.reports.metric_facts import MetricFacts
from peftcli.reports.record import Answers, DifferenceRecord, EvaluationRecord, Interval, Intervals, LayerUpdate
from peftcli.runs.assembly import Assembly
from peftcli.runs.showing import shown_samples, source_scores
from peftcli.training.setup import FitResult


def score_facts(scores: RunScores, prepared: Prepared) -> dict[str, Any]:
    """The parts of a run's record that come from its scores; none where nothing was scored."""
    if scores.base is None or scores.tuned is None:
        return {}
    metrics = prepared.loaded.recipe.evaluation.metrics
    return {
        "evaluation": evaluation_record(scores.base, scores.tuned, prepared.data.facts, metrics),
        "samples": shown_samples(scores.base, scores.tuned),
    }


def evaluation_record(
    base: Evaluation | None, tuned: Evaluation, facts: DataFacts, metrics: Sequence[str]
) -> EvaluationRecord:
    """Base and tuned model on the same rows; the base is None where a model is scored alone.

    `metrics`: as the recipe names them, the first task metric leads."""
    known = facts_of(tuned)
    differences = {} if base is None else compare(base, tuned)
    return EvaluationRecord(
        base={} if base is None else base.metrics,
        tuned=tuned.metrics,
        intervals=Intervals(base={} if base is None else _pairs(base), tuned=_pairs(tuned)),
        facts=known,
        headline=headline(metrics, known),
        differences={name: _difference(each) for name, each in differences.items()},
        answers_base=Answers() if base is None else _answers(base),
        answers_tuned=_answers(tuned),
        answer_budget=tuned.budget,
        leaked_rows=leaked_rows(facts, tuned.rows),
        rows=tuned.rows,
        sources=source_scores(base, tuned, facts),
    )


def headline(metrics: Sequence[str], facts: dict[str, MetricFacts]) -> str | None:
    """The first metric of a recipe that is more than the loss in another form."""
    names = (REPORT_PREFIX + name for name in metrics)
    return next((name for name in names if name in facts and not facts[name].smooth), None)


def leaked_rows(facts: DataFacts, scored: int) -> int:
    """Scored rows that were trained on; where only the first rows are scored, in proportion."""
    if facts.validation is None or not facts.validation.rows_read:
        return 0
    # rows that are scored are the first of the split; which of them leaked is not counted one by one
    return min(scored, round(facts.validation_trained_on * scored / facts.validation.rows_read))


def warnings_of(evaluation: EvaluationRecord) -> list[str]:
    """What a reader of the figures must know: answers that were cut, rows that were trained on."""
    found = []
    tuned, base = evaluation.answers_tuned, evaluation.answers_base
    if tuned.cut or base.cut:
        whose = f"of the tuned model ({base.cut:,} of the base's)" if evaluation.base else "of the model"
        found.append(
            f"{tuned.cut:,} of {tuned.count:,} answers {whose} were cut at "
            f"{evaluation.answer_budget} new tokens and count as they are; raise generation.max_new_tokens"
        )
    found += _remarks(evaluation)
    if evaluation.leaked_rows:
        found.append(f"{evaluation.leaked_rows:,} of {evaluation.rows or 0:,} scored rows were trained on too")
    return found


def _remarks(evaluation: EvaluationRecord) -> list[str]:
    """What metrics themselves have to say of base and tuned model."""
    found = []
    for name in evaluation.tuned:
        remark = get_metric(name).remark
        base, tuned = evaluation.base.get(name), evaluation.tuned[name]
        if remark is not None and base is not None and tuned is not None and (told := remark(base, tuned)):
            found.append(told)
    return found


def _difference(found: Difference) -> DifferenceRecord:
    return DifferenceRecord(
        delta=found.delta, interval=(found.lo, found.hi), test=found.test, p=found.p, verdict=found.verdict
    )


def _answers(evaluation: Evaluation) -> Answers:
    """Where a metric reads answers; a few samples for the eye may end anywhere."""
    read = any(table.metric.needs == "generations" for table in evaluation.tables.values())
    return Answers(count=evaluation.answered, cut=evaluation.cut) if read else Answers()


def _pairs(evaluation: Evaluation) -> dict[str, Interval]:
    return {name: (float(low), float(high)) for name, (low, high) in evaluation.intervals.items()}


def updates_of(model: nn.Module) -> list[LayerUpdate]:
    """How far the adapter moved each weight; asked once, when the adapter that is kept is in the model."""
    return [LayerUpdate(name=item.layer, norm=item.norm, relative=item.relative) for item in update_norms(model)]


@dataclass(frozen=True)
class RunScores:
    """Base and tuned model on the validation rows; None where there are none."""

    base: Evaluation | None
    tuned: Evaluation | None


def score_run(assembly: Assembly, result: FitResult) -> RunScores:
    """Scores of base and chosen adapter; what the loop has computed already is taken, the rest computed now."""
    if assembly.validation is None:
        return RunScores(None, None)
    base = assembly.scores.get(0)
    # a run that goes on from an adapter has scored that one at step 0, and not the base
    if base is None or assembly.prepared.start is not None:
        with disabled(assembly.model):
            base = assembly.evaluate(with_samples=True)
    tuned = assembly.scores.get(result.chosen_step)
    # evaluations within training write no samples, except that of the last step
    if tuned is None or result.chosen_step != assembly.prepared.plan.resolved.steps:
        tuned = assembly.evaluate(with_samples=True)
    return RunScores(base, tuned)
