"""The verdict and the checks behind it, rule by rule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from example_run import bare_run, data_facts, example_run, facts_of, failed_run, interrupted_run

from peftcli.evaluation.registry import metric_facts
from peftcli.reports import checks
from peftcli.reports.metric_facts import MetricFacts
from peftcli.reports.record import (
    Answers,
    DifferenceRecord,
    EvaluationRecord,
    Event,
    ExpectResult,
    Intervals,
    LayerUpdate,
    Predicted,
    Sample,
)
from peftcli.reports.scores import Score, scores
from peftcli.reports.series import Series
from peftcli.reports.verdict import exit_code_meaning, judge


def evaluated(base: dict[str, float], tuned: dict[str, float], **more: object):
    facts = facts_of(*{*base, *tuned})
    return bare_run(evaluation=EvaluationRecord(base=base, tuned=tuned, **{"facts": facts, **more}))


def difference(verdict: str) -> DifferenceRecord:
    return DifferenceRecord(delta=-1.0, interval=(-2.0, 0.5), test="paired bootstrap over rows", verdict=verdict)


def grade(run) -> str:
    return judge(run.record, []).grade


@pytest.mark.parametrize(
    ("base", "tuned", "expected"),
    [
        ({"eval_loss": 3.0}, {"eval_loss": 2.0}, "learned"),
        ({"eval_loss": 3.0}, {"eval_loss": 3.6}, "worse"),
        ({"eval_loss": 3.0}, {"eval_loss": 2.995}, "unclear"),
        ({"eval_loss": 3.0, "eval_f1": 0.5}, {"eval_loss": 2.0, "eval_f1": 0.3}, "mixed"),
        ({"eval_loss": 3.0, "eval_f1": 0.5}, {"eval_loss": 2.999, "eval_f1": 0.8}, "learned"),
        ({"eval_exact_match": 0.1}, {"eval_exact_match": 0.9}, "learned"),
        ({}, {"eval_loss": 2.0}, "unmeasured"),
        ({}, {}, "unmeasured"),
        ({"eval_loss": 3.0}, {"eval_loss": math.nan}, "unmeasured"),
    ],
)
def test_grades(base, tuned, expected):
    assert grade(evaluated(base, tuned)) == expected


@pytest.mark.parametrize(("verdict", "expected"), [("unclear", "unclear"), ("better", "learned"), ("worse", "worse")])
def test_the_paired_comparison_decides_whatever_the_intervals(verdict, expected):
    run = evaluated(
        {"eval_loss": 3.0},
        {"eval_loss": 2.0},
        intervals=Intervals(base={"eval_loss": (2.0, 4.0)}, tuned={"eval_loss": (1.0, 2.5)}),
        differences={"eval_loss": difference(verdict)},
        rows=40,
    )
    assert grade(run) == expected
    basis = judge(run.record, []).basis
    clear = "not clear" if verdict == "unclear" else "clear"
    assert (
        basis
        == f"Measured on 40 held-out rows; compared in pairs (paired bootstrap over rows): {clear} at the 95 % level."
    )


def test_a_metric_from_outside_is_judged_by_its_own_word():
    facts = {"eval_slips": MetricFacts(better="lower", unit="slips")}
    fell = evaluated({}, {}, facts=facts).record.evaluation.model_copy(
        update={"base": {"eval_slips": 4.0}, "tuned": {"eval_slips": 1.0}, "headline": "eval_slips"}
    )
    run = bare_run(evaluation=fell)
    assert grade(run) == "learned"
    assert judge(run.record, []).sentences == ["Slips fell from 4.000 to 1.000 (−75.0 %)."]
    assert scores(run.record)[0].direction == "lower is better"


def test_a_metric_that_nobody_knows_is_shown_and_not_judged():
    run = bare_run(evaluation=EvaluationRecord(base={"eval_odd": 4.0}, tuned={"eval_odd": 1.0}))
    assert grade(run) == "unmeasured"
    assert scores(run.record)[0].value("tuned") == "1.000"


def test_of_two_comparisons_it_is_said_which_one_is_clear():
    run = evaluated(
        {"eval_loss": 9.0, "eval_exact_match": 0.0},
        {"eval_loss": 2.0, "eval_exact_match": 0.0},
        differences={"eval_loss": difference("better"), "eval_exact_match": difference("unclear")},
        rows=20,
        headline="eval_exact_match",
    )
    assert judge(run.record, []).basis.endswith(": loss clear, exact match not clear at the 95 % level.")


def test_the_headline_is_the_one_that_the_recipe_names_first():
    values = {"eval_loss": 1.0, "eval_token_accuracy": 0.5, "eval_exact_match": 0.5, "eval_f1": 0.5}
    run = evaluated(values, {name: value / 2 for name, value in values.items()}, headline="eval_f1")
    assert [sentence.split()[0] for sentence in judge(run.record, []).sentences] == ["Evaluation", "F1"]
    assert [score.metric for score in scores(run.record)][:2] == ["eval_loss", "eval_f1"]


@pytest.mark.parametrize(("leaked", "expected"), [(0, "learned"), (9, "learned"), (10, "leaked"), (20, "leaked")])
def test_nothing_is_learned_over_rows_that_were_trained_on(leaked, expected):
    run = evaluated({"eval_loss": 3.0}, {"eval_loss": 2.0}, rows=20, leaked_rows=leaked)
    verdict = judge(run.record, checks.run_checks(run))
    assert verdict.grade == expected
    assert ("trained on too" in verdict.basis) == (leaked > 0)
    assert outcome(checks.leaked, run) == (None if not leaked else "warn" if expected == "learned" else "bad")
    if leaked == 20:
        assert "held-out" not in verdict.basis


def test_answers_that_were_cut_are_told():
    cut = EvaluationRecord(answers_tuned=Answers(count=40, cut=38), answer_budget=64, rows=40)
    found = checks.cut_answers(bare_run(evaluation=cut))
    assert found is not None
    assert found.outcome == "warn"
    assert found.text.startswith("38 of 40 answers were cut at 64 new tokens")
    whole = cut.model_copy(update={"answers_tuned": Answers(count=40)})
    assert outcome(checks.cut_answers, bare_run(evaluation=whole)) == "clear"
    assert outcome(checks.cut_answers, bare_run()) is None


def test_change_is_in_points_for_rates_and_in_percent_else():
    match, loss = metric_facts("exact_match"), metric_facts("loss")
    assert Score("eval_exact_match", 0.25, 0.75, match).change == "+50.0 points"
    assert Score("eval_loss", 4.0, 3.0, loss).change == "−25.0 %"
    assert Score("eval_loss", None, 3.0, loss).change == "—"


def test_the_loss_stands_first():
    run = evaluated({"eval_f1": 0.1, "eval_loss": 1.0}, {"eval_f1": 0.2, "eval_loss": 0.9})
    assert [score.metric for score in scores(run.record)] == ["eval_loss", "eval_f1"]


def test_failed_and_interrupted_runs_say_where_they_stopped():
    failed = judge(failed_run().record, [])
    assert (failed.grade, failed.sentences[0]) == ("failed", "It stopped after step 119 of 300.")
    interrupted = judge(interrupted_run().record, [])
    assert interrupted.grade == "interrupted"
    assert "resume" in interrupted.sentences[0]


def test_exit_codes_have_a_meaning():
    assert "NaN" in exit_code_meaning(8)
    assert "memory" in exit_code_meaning(9)
    signals = {129: "SIGHUP", 130: "SIGINT", 143: "SIGTERM"}
    assert all(name in exit_code_meaning(code) for code, name in signals.items())
    assert "bug in peftcli" in exit_code_meaning(1)


def outcome(check, run) -> str | None:
    found = check(run)
    return found.outcome if found else None


def with_losses(*losses: float, evaluations: dict[int, float] | None = None, run=None):
    train = {step: {"loss": loss, "grad_norm": 0.5} for step, loss in enumerate(losses, start=1)}
    evals = {step: {"eval_loss": loss} for step, loss in (evaluations or {}).items()}
    return replace(run or bare_run(), series=Series(train, evals))


def test_loss_that_is_not_finite():
    assert outcome(checks.finite_losses, with_losses(1.0, math.nan)) == "bad"
    assert outcome(checks.finite_losses, with_losses(1.0, 0.9)) == "clear"
    assert outcome(checks.finite_losses, bare_run()) is None


def test_gates():
    gate = ExpectResult(metric="eval_loss", wanted="< 1", found=2.0, held=False)
    assert outcome(checks.gates, bare_run(expect=[gate])) == "bad"
    assert outcome(checks.gates, example_run()) == "clear"
    assert outcome(checks.gates, bare_run()) is None


def test_an_adapter_that_did_not_move():
    still, moved = LayerUpdate(name="a", norm=0.0), LayerUpdate(name="b", norm=1.0)
    assert outcome(checks.adapter_moved, bare_run(updates=[still])) == "bad"
    assert outcome(checks.adapter_moved, bare_run(updates=[still, moved])) == "warn"
    assert outcome(checks.adapter_moved, bare_run(updates=[moved])) == "clear"
    assert outcome(checks.adapter_moved, bare_run()) is None


def test_overfitting_depends_on_which_step_was_kept():
    curve = {0: 3.0, 10: 2.0, 20: 2.3}
    assert outcome(checks.overfitting, with_losses(1.0, evaluations=curve)) == "warn"
    kept = with_losses(1.0, evaluations=curve, run=bare_run(adapter_step=10))
    assert outcome(checks.overfitting, kept) == "note"
    assert outcome(checks.overfitting, with_losses(1.0, evaluations={0: 3.0, 10: 2.0, 20: 2.01})) == "clear"


def test_memorising_compares_at_the_same_step():
    low = with_losses(*[0.5] * 20, evaluations={0: 3.0, 20: 2.0})
    assert outcome(checks.memorising, low) == "warn"
    later = with_losses(*[2.0] * 20, *[0.5] * 20, evaluations={0: 3.0, 10: 2.1})
    assert outcome(checks.memorising, later) == "clear"
    # held-out rows that are answered as well were not learned by heart
    whole = with_losses(*[0.0003] * 20, evaluations={0: 2.2, 20: 0.0005})
    assert outcome(checks.memorising, whole) == "clear"


def test_still_falling_at_the_end():
    assert outcome(checks.unfinished, with_losses(1.0, evaluations={0: 3.0, 1: 2.5, 2: 2.0, 3: 1.5})) == "note"
    assert outcome(checks.unfinished, with_losses(1.0, evaluations={0: 3.0, 1: 2.5, 2: 2.0, 3: 1.999})) == "clear"


def test_spikes_are_found_and_noise_is_not():
    assert outcome(checks.spikes, with_losses(*[1.0] * 30, 9.0, *[1.0] * 30)) == "warn"
    assert outcome(checks.spikes, with_losses(*[1.0, 1.5, 0.7] * 20)) == "clear"
    assert "step 31" in checks.spikes(with_losses(*[1.0] * 30, 9.0, *[1.0] * 30)).text


def test_clipping_at_nearly_every_step():
    run = with_losses(*[1.0] * 20, run=bare_run(settings={"max_grad_norm": 0.1}))
    assert outcome(checks.clipping, run) == "note"
    assert outcome(checks.clipping, with_losses(*[1.0] * 20, run=bare_run(settings={"max_grad_norm": 1.0}))) == "clear"
    assert outcome(checks.clipping, with_losses(*[1.0] * 20)) is None


def test_few_rows_to_evaluate_on():
    assert outcome(checks.enough_rows, bare_run(evaluation=EvaluationRecord(rows=8))) == "warn"
    assert outcome(checks.enough_rows, example_run()) == "clear"


def test_results_too_good_to_be_true():
    assert outcome(checks.too_good, evaluated({"eval_f1": 0.99}, {"eval_f1": 0.99})) == "note"
    assert outcome(checks.too_good, evaluated({"eval_f1": 0.2}, {"eval_f1": 1.0})) == "note"
    assert outcome(checks.too_good, evaluated({"eval_f1": 0.2}, {"eval_f1": 0.8})) == "clear"


def answered(*answers: str):
    return bare_run(samples=[Sample(prompt="p", reference=f"r{i}", tuned=text) for i, text in enumerate(answers)])


def test_answers_that_are_empty_looping_or_all_alike():
    assert outcome(checks.answers, answered("yes", "")) == "warn"
    assert outcome(checks.answers, answered("fine", "well " + "and so on " * 6)) == "warn"
    assert outcome(checks.answers, answered("same", "same", "same")) == "warn"
    assert outcome(checks.answers, answered("one", "two", "three")) == "clear"


def test_rows_that_were_dropped():
    facts = data_facts()
    facts["train"]["dropped"] = {"too long": 400}
    assert outcome(checks.rows_lost, bare_run(data=facts)) == "warn"
    assert outcome(checks.rows_lost, example_run()) == "clear"


def test_memory_beside_its_prediction():
    far = bare_run(peak_memory_bytes=200, predicted=Predicted(peak_memory_bytes=100))
    assert outcome(checks.memory_prediction, far) == "note"
    assert outcome(checks.memory_prediction, example_run()) == "clear"


def test_events_and_a_torn_log_are_worth_a_note():
    assert outcome(checks.mishaps, bare_run(events=[Event(event="resume", step=3)])) == "note"
    assert outcome(checks.log_complete, replace(bare_run(), series=Series(unreadable=2))) == "note"
    assert outcome(checks.log_complete, bare_run()) is None


def test_the_gravest_check_comes_first_and_trust_follows():
    found = checks.run_checks(failed_run())
    assert found[0].outcome == "bad"
    assert "not to trust" in judge(failed_run().record, found).trust
    assert "Nothing suspicious" in judge(bare_run().record, [checks.Check("a", "clear", "b")]).trust


def test_a_run_that_did_not_end_is_never_free_of_suspicion():
    for run in (failed_run(), interrupted_run()):
        verdict = judge(run.record, [])
        assert "Nothing suspicious" not in verdict.trust
        assert "did not finish" in verdict.trust
