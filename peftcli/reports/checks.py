"""What a careful reader would look for in a finished run: one pure function each, over the facts alone.

A check that the facts cannot answer returns None and is not shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from peftcli.reports import numbers
from peftcli.reports.data_facts import split_facts
from peftcli.reports.folder import RunFacts
from peftcli.reports.scores import LOSS, is_leaked, metric_label, scores
from peftcli.reports.smoothing import running_mean, smooth

Outcome = Literal["clear", "note", "warn", "bad"]
"""How a check of a run came out, from nothing to say to a reason not to use the adapter."""

_OVERFIT = 0.02  # eval loss this far above its lowest point
_STILL_FALLING = 0.01  # the last evaluation still brought this much
_NEARLY_NOTHING = 0.1
"""A loss below which ratios of losses say nothing."""
_MEMORISED = 0.6  # train loss below this share of eval loss
_SPIKE = 3.0  # loss this many times the running mean
_FEW_ROWS = 30
_ROWS_LOST = 0.05
_CLIPPED = 0.9
_MEMORY_OFF = 0.25


@dataclass(frozen=True)
class Check:
    """`clear`: looked at and fine. `note`: worth knowing. `warn`: look before you trust it. `bad`: do not trust it."""

    name: str
    outcome: Outcome
    text: str


def finite_losses(run: RunFacts) -> Check | None:
    """NaN or infinity in a logged loss or gradient norm."""
    if not run.series.train:
        return None
    steps = run.series.nonfinite_steps()
    if steps:
        return Check("Finite numbers", "bad", f"Loss or gradient was not finite at {_steps(steps)}.")
    return Check("Finite numbers", "clear", "Every logged loss and gradient norm is finite.")


def gates(run: RunFacts) -> Check | None:
    """The recipe's `expect`."""
    if not run.record.expect:
        return None
    missed = [gate for gate in run.record.expect if not gate.held]
    if missed:
        names = ", ".join(metric_label(gate.metric) for gate in missed)
        return Check("Expected results", "bad", f"The recipe's expectations were not met: {names}.")
    return Check("Expected results", "clear", f"All {len(run.record.expect)} expectations of the recipe were met.")


def over_seeds(run: RunFacts) -> Check | None:
    """What a record of several seeds is."""
    seeds = run.record.seeds
    if not seeds:
        return None
    names = ", ".join(str(entry.seed) for entry in seeds)
    text = (
        f"Means of {len(seeds)} runs (seeds {names}); intervals are 95 % t intervals over seeds, over rows where all"
        " seeds agree."
    )
    return Check("Seeds", "note", text)


def adapter_moved(run: RunFacts) -> Check | None:
    """An adapter whose update is zero everywhere has learned nothing, whatever the loss did."""
    norms = [update.norm for update in run.record.updates if update.norm is not None]
    if not norms:
        return None
    still = sum(norm == 0 for norm in norms)
    if still == len(norms):
        return Check("Weights moved", "bad", "No layer was changed at all: the adapter equals the base.")
    if still:
        return Check("Weights moved", "warn", f"{still} of {len(norms)} layers were not changed.")
    return Check("Weights moved", "clear", f"All {len(norms)} adapted layers were changed.")


def overfitting(run: RunFacts) -> Check | None:
    """Evaluation loss that turned upwards before the end."""
    points = run.series.evaluation("eval_loss")
    # two points are a line, which turns nowhere
    if len(points) < 3:
        return None
    best_step, best = min(points, key=lambda point: point[1])
    last_step, last = points[-1]
    if best_step == last_step or last <= best * (1 + _OVERFIT):
        # a little above the lowest point is the noise of an evaluation
        return Check("Overfitting", "clear", "Evaluation loss did not turn upwards.")
    kept = run.record.adapter_step == best_step
    saved = "the adapter is the one of that step" if kept else "fewer steps may help, or keeping the best checkpoint"
    rise = numbers.percent(last / best - 1)
    text = f"Evaluation loss was lowest at step {best_step:,} and ended {rise} above it; {saved}."
    return Check("Overfitting", "note" if kept else "warn", text)


def memorising(run: RunFacts) -> Check | None:
    """Training loss far below evaluation loss at the end."""
    evaluation, train = run.series.evaluation("eval_loss"), smooth(run.series.column("loss"))
    # fewer steps are not smooth enough to compare with an evaluation
    if not evaluation or len(train) < 10 or evaluation[-1][1] <= 0:
        return None
    step, held_out = evaluation[-1]
    # the training loss of the same step; before the first logged one there is nothing but the first
    seen = next((value for at, value in reversed(train) if at <= step), train[0][1])
    # rows that are answered without having been trained on were not learned by heart, whatever the share is
    if held_out < _NEARLY_NOTHING:
        return Check("Memorising", "clear", "Evaluation loss is nearly nothing.")
    share = seen / held_out
    if share >= _MEMORISED:
        return Check("Memorising", "clear", "Training and evaluation loss stayed close.")
    text = (
        f"At step {step:,} training loss was {numbers.plain(seen)} and evaluation loss {numbers.plain(held_out)}: "
        "rows may be learned by heart."
    )
    return Check("Memorising", "warn", text)


def unfinished(run: RunFacts) -> Check | None:
    """Whether more steps would probably have helped."""
    points = run.series.evaluation("eval_loss")
    # of fewer evaluations the last is too often the lowest by chance
    if len(points) < 4 or run.record.status != "completed":
        return None
    (_, before), (_, last) = points[-2:]
    if last == min(value for _, value in points) and last < before * (1 - _STILL_FALLING):
        return Check("Trained long enough", "note", "Evaluation loss was still falling: more steps may help.")
    return Check("Trained long enough", "clear", "Evaluation loss had levelled off.")


def spikes(run: RunFacts) -> Check | None:
    """Loss far above its running mean."""
    points = run.series.column("loss")
    # the running mean needs some points before it stands for anything
    if len(points) < 20:
        return None
    means = running_mean(points)
    high = [
        step
        # each point beside the mean of those before it: its own value would raise the mean
        for (step, value), (_, mean) in zip(points[1:], means, strict=False)
        if mean > 0 and value > _SPIKE * mean and value > _NEARLY_NOTHING
    ]
    if high:
        return Check("Steady loss", "warn", f"Loss jumped above {_SPIKE:g} times its running mean at {_steps(high)}.")
    return Check("Steady loss", "clear", "No spikes in the training loss.")


def clipping(run: RunFacts) -> Check | None:
    """A gradient that is clipped at nearly every step means that the clip sets the rate."""
    limit = run.record.settings.get("max_grad_norm")
    norms = [value for _, value in run.series.column("grad_norm")]
    # a bool is an int to Python; a share of fewer than ten steps says little
    if not isinstance(limit, int | float) or isinstance(limit, bool) or limit <= 0 or len(norms) < 10:
        return None
    share = sum(norm > limit for norm in norms) / len(norms)
    if share > _CLIPPED:
        text = f"Gradients were clipped at {numbers.percent(share)} of the steps (max_grad_norm {limit:g})."
        return Check("Gradient clipping", "note", text)
    return Check("Gradient clipping", "clear", f"Gradients were clipped at {numbers.percent(share)} of the steps.")


def enough_rows(run: RunFacts) -> Check | None:
    """Whether the evaluation rests on enough rows."""
    rows = run.record.evaluation.rows
    if rows is None:
        return None
    if rows < _FEW_ROWS:
        return Check("Evaluation size", "warn", f"Only {rows} rows were scored: small differences mean little.")
    return Check("Evaluation size", "clear", f"{rows:,} held-out rows were scored.")


def too_good(run: RunFacts) -> Check | None:
    """Perfect results, or a base that needed no training, deserve a second look."""
    perfect, saturated = [], []
    for score in scores(run.record):
        # what has a best value: a share, and the loss itself; others end where only their own file knows
        if not (score.fraction or score.metric == LOSS):
            continue
        # a share is best at 1, unless lower is better, as for an error rate
        best = 0.0 if score.lower_is_better else 1.0
        if score.base is not None and abs(score.base - best) < 0.02:
            saturated.append(metric_label(score.metric))
        elif score.tuned is not None and abs(score.tuned - best) < 0.001:
            perfect.append(metric_label(score.metric))
    if saturated:
        return Check("Too good", "note", f"The base was already near perfect in {', '.join(saturated)}.")
    if perfect:
        return Check(
            "Too good", "note", f"Perfect {', '.join(perfect)}: make sure that no held-out row was trained on."
        )
    return Check("Too good", "clear", "No result is too good to be true.") if scores(run.record) else None


def leaked(run: RunFacts) -> Check | None:
    """Rows that were scored and trained on."""
    found, rows = run.record.evaluation.leaked_rows, run.record.evaluation.rows
    if not found or not rows:
        return None
    text = f"{found:,} of {rows:,} scored rows were trained on too: figures on them say nothing about new rows."
    return Check("Held-out rows", "bad" if is_leaked(run.record) else "warn", text)


def cut_answers(run: RunFacts) -> Check | None:
    """Answers that were ended by `generation.max_new_tokens`: a metric that compares texts calls them wrong."""
    tuned, budget = run.record.evaluation.answers_tuned, run.record.evaluation.answer_budget
    if not tuned.count or budget is None:
        return None
    if not tuned.cut:
        return Check("Answers ended", "clear", f"All {tuned.count:,} answers ended by themselves.")
    text = (
        f"{tuned.cut:,} of {tuned.count:,} answers were cut at {budget:,} new tokens, before the model had ended them: "
        "raise generation.max_new_tokens, or look for what it repeats."
    )
    return Check("Answers ended", "warn", text)


def answers(run: RunFacts) -> Check | None:
    """Empty, equal or looping answers in the samples."""
    given = [sample.tuned for sample in run.record.samples if sample.tuned is not None]
    if not given:
        return None
    empty = sum(not answer.strip() for answer in given)
    if empty:
        return Check("Answers", "warn", f"{empty} of {len(given)} sample answers are empty.")
    loops = sum(is_looping(answer) for answer in given)
    if loops:
        return Check("Answers", "warn", f"{loops} of {len(given)} sample answers repeat themselves.")
    references = {sample.reference for sample in run.record.samples}
    # one prompt often has one answer; the same answer to unlike questions is a model that reads none of them
    if len(given) > 2 and len(set(given)) == 1 and len(references) > 1:
        return Check("Answers", "warn", "All sample answers are the same although their references differ.")
    return Check("Answers", "clear", f"None of {len(given)} sample answers is empty or repeats itself.")


def is_looping(text: str) -> bool:
    """Whether the end of a text is one phrase of up to 12 words, at least four times over."""
    # words, so that unlike spaces hide no repetition; phrases of up to twelve, so that a paragraph said twice is none
    words = text.split()
    ends = ((words[-length:] * 4, words[-4 * length :]) for length in range(1, 13))
    return any(repeated == end for repeated, end in ends)


def rows_lost(run: RunFacts) -> Check | None:
    """Rows of the training data that were read and not used."""
    facts = split_facts(run.record.data, "train")
    if facts is None or not facts.rows_read:
        return None
    share = facts.rows_dropped / facts.rows_read
    if share > _ROWS_LOST:
        text = f"{facts.rows_dropped:,} of {facts.rows_read:,} training rows were dropped ({numbers.percent(share)})."
        return Check("Rows used", "warn", text)
    if facts.rows_dropped:
        return Check("Rows used", "clear", f"{numbers.percent(1 - share)} of the training rows were used.")
    return Check("Rows used", "clear", "Every training row was used.")


def doctor(run: RunFacts) -> Check | None:
    """The data doctor's findings."""
    serious = [finding for finding in run.findings if finding.severity != "info"]
    if serious:
        names = ", ".join(dict.fromkeys(finding.check.replace("_", " ") for finding in serious))
        return Check("Data doctor", "warn", f"The data doctor found: {names}.")
    return Check("Data doctor", "clear", "The data doctor found nothing.") if run.record.data else None


def memory_prediction(run: RunFacts) -> Check | None:
    """Measured against predicted peak memory."""
    predicted, measured = run.record.predicted.peak_memory_bytes, run.record.peak_memory_bytes
    if not predicted or not measured:
        return None
    off = measured / predicted - 1
    # a quarter: planning promises no more
    if abs(off) > _MEMORY_OFF:
        text = f"Peak memory was {numbers.signed(numbers.percent(abs(off)), off)} from the prediction."
        return Check("Memory as predicted", "note", text)
    return Check("Memory as predicted", "clear", f"Peak memory within {numbers.percent(abs(off))} of the prediction.")


def mishaps(run: RunFacts) -> Check | None:
    """Resumes, halved micro-batches and the like."""
    if not run.record.events:
        return None
    # four fit on a line; the history has them all
    names = ", ".join(f"{event.event.replace('_', ' ')} at step {event.step:,}" for event in run.record.events[:4])
    more = f" and {len(run.record.events) - 4} more" if len(run.record.events) > 4 else ""
    return Check("Events", "note", f"On the way: {names}{more}.")


def log_complete(run: RunFacts) -> Check | None:
    """Lines of metrics.jsonl that cannot be read."""
    if not run.series.unreadable:
        return None
    return Check("Complete log", "note", f"{run.series.unreadable} lines of metrics.jsonl could not be read.")


CHECKS: tuple[Callable[[RunFacts], Check | None], ...] = (
    finite_losses,
    gates,
    over_seeds,
    adapter_moved,
    overfitting,
    memorising,
    spikes,
    too_good,
    leaked,
    answers,
    cut_answers,
    enough_rows,
    rows_lost,
    doctor,
    unfinished,
    clipping,
    memory_prediction,
    mishaps,
    log_complete,
)

_ORDER: dict[Outcome, int] = {"bad": 0, "warn": 1, "note": 2, "clear": 3}


def run_checks(run: RunFacts) -> list[Check]:
    """All checks that the facts can answer, the gravest first."""
    # the order of `CHECKS` among equals: `sorted` is stable
    found = [check for function in CHECKS if (check := function(run)) is not None]
    return sorted(found, key=lambda check: _ORDER[check.outcome])


def _steps(steps: list[int]) -> str:
    shown = ", ".join(f"{step:,}" for step in steps[:5])
    more = f" and {len(steps) - 5} more" if len(steps) > 5 else ""
    return f"step{'s' if len(steps) > 1 else ''} {shown}{more}"
