"""Several runs side by side: what they are called, which is best in what, whether they can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peftcli.ownership import MARKDOWN_MARK
from peftcli.reports import numbers
from peftcli.reports.checks import run_checks
from peftcli.reports.folder import RunFacts
from peftcli.reports.markdown import code, table
from peftcli.reports.metric_facts import MetricFacts
from peftcli.reports.scores import LOSS, Score, metric_label, scores
from peftcli.reports.settings import parted_settings
from peftcli.reports.verdict import judge
from peftcli.reports.visible import clipped

MAX_RUNS = 24
"""More runs side by side are not readable."""
_MAX_METRICS = 16
_MAX_SETTINGS = 40
MAX_NAME = 60
"""Characters of a run's name in a comparison."""

Fact = Callable[[RunFacts], float | None]


@dataclass(frozen=True)
class Column:
    """One measured cost of a run. `write`: how its number is shown."""

    title: str
    value: Fact
    write: Callable[[float | None], str]


COSTS = (
    # `or None`: an older record, or a run without an adapter, has 0 for what it does not know
    Column("Trained parameters", lambda run: run.record.parameters.trainable, numbers.count),
    Column("Adapter", lambda run: run.record.adapter_bytes or None, numbers.data_size),
    Column("Steps", lambda run: run.record.steps, numbers.count),
    Column("Training time", lambda run: run.record.seconds.training, numbers.duration),
    Column("Tokens/s", lambda run: run.record.tokens_per_second, numbers.count),
    Column("Peak memory", lambda run: run.record.peak_memory_bytes or None, numbers.data_size),
)
"""What runs are compared by beside their scores."""


def labels(runs: Sequence[RunFacts]) -> list[str]:
    """A name for each run; equal names get their folder, then a number."""
    # names may still be equal (two runs of one recipe elsewhere), and so may folders
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [run.label or run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, start=1)]
    return [clipped(name, MAX_NAME) for name in names]


def metric_names(runs: Sequence[RunFacts]) -> list[str]:
    """Every metric of any run, the loss first; at most so many as fit on a page."""
    names = dict.fromkeys(score.metric for run in runs for score in scores(run.record))
    # stable: the other metrics keep the order of the first run that has them
    return sorted(names, key=lambda name: name != LOSS)[:_MAX_METRICS]


def facts_in(runs: Sequence[RunFacts], metric: str) -> MetricFacts | None:
    """What the first run that knows a metric says of it."""
    return next((facts for run in runs if (facts := run.record.evaluation.facts.get(metric))), None)


def best_run(runs: Sequence[RunFacts], metric: str) -> int | None:
    """Index of the run that is best in a metric; None when fewer than two were measured, or nobody says which way."""
    facts = facts_in(runs, metric)
    values = [(run.record.evaluation.tuned.get(metric), index) for index, run in enumerate(runs)]
    measured = [(value, index) for value, index in values if value is not None]
    if len(measured) < 2 or facts is None:
        return None
    pick = min if facts.better == "lower" else max
    return pick(measured, key=lambda pair: pair[0])[1]


def summary(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    """Which run is best, said metric by metric."""
    winners: dict[int, list[str]] = {}
    for metric in metric_names(runs):
        if (best := best_run(runs, metric)) is not None:
            winners.setdefault(best, []).append(metric_label(metric))
    if not winners:
        return "No metric was measured for two of these runs."
    said = [f"{names[index]} is best in {listed(metrics)}" for index, metrics in winners.items()]
    return f"{'; '.join(said)}."


def unlike(runs: Sequence[RunFacts]) -> list[str]:
    """What must be alike for a comparison to be one of methods, and is not."""
    facts: dict[str, Callable[[RunFacts], object]] = {
        "base model": lambda run: run.record.base,
        "task": lambda run: run.record.task,
        "evaluation rows": lambda run: run.record.evaluation.rows,
        "training data": lambda run: _stream(run, "train"),
        "evaluation data": lambda run: _stream(run, "validation"),
        "status": lambda run: run.record.status,
    }
    return [name for name, fact in facts.items() if any(fact(run) != fact(runs[0]) for run in runs[1:])]


def _stream(run: RunFacts, split: str) -> object:
    """What the data of a split is known by: the hash of its tokens."""
    facts = run.record.data.get(split)
    # by the hash of the tokens, so that a renamed or moved file is the same data
    return facts.get("stream_sha256") if isinstance(facts, dict) else None


def caveat(runs: Sequence[RunFacts]) -> str | None:
    """A sentence on what the runs differ in though they should not; None where they are alike."""
    differing = unlike(runs)
    return f"Not like with like: these runs differ in {listed(differing)}." if differing else None


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def render_comparison_markdown(runs: Sequence[RunFacts]) -> str:
    """The comparison as Markdown tables; raises `ValueError` for no runs."""
    if not runs:
        raise ValueError("a comparison needs at least one run")
    names = labels(runs)
    metrics = metric_names(runs)
    best = {metric: best_run(runs, metric) for metric in metrics}
    results, costs = [], []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        found = {score.metric: score for score in scores(run.record)}
        cells = [_cell(found.get(metric), is_best=best[metric] == index) for metric in metrics]
        results.append([code(name), judge(run.record, run_checks(run)).headline, *cells])
        costs.append([code(name), *(column.write(column.value(run)) for column in COSTS)])
    heads = ["Run", "Verdict", *(code(metric_label(metric)) for metric in metrics)]
    return "\n\n".join(
        [
            f"## {len(runs)} runs side by side",
            *([warning] if (warning := caveat(runs)) else []),
            table(heads, results),
            table(["Run", *(column.title for column in COSTS)], costs),
            *_differences(runs, names),
            MARKDOWN_MARK + "\n",
        ]
    )


def _differences(runs: Sequence[RunFacts], names: Sequence[str]) -> list[str]:
    differing, _ = parted_settings(runs)
    rows = [[code(key), *(code(value, MAX_NAME) for value in values)] for key, values in differing[:_MAX_SETTINGS]]
    return [table(["Setting", *(code(name) for name in names)], rows)] if rows else []


def _cell(score: Score | None, *, is_best: bool) -> str:
    if score is None or score.tuned is None:
        return numbers.MISSING
    return f"**{score.value('tuned')}**" if is_best else score.value("tuned")
