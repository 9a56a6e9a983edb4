"""`seeds: n`: the same run under several seeds, each in a folder of its own, and their mean with its interval."""

from __future__ import annotations

import dataclasses
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from peftcli import files
from peftcli.errors import Interrupted, PeftcliError, exit_code_of
from peftcli.evaluation.result import Verdict
from peftcli.lock.bands import Measured
from peftcli.lock.document import LOCK_NAME
from peftcli.lock.lock_file import read_lock, write_lock
from peftcli.planning.plan import Prepared, prepare_run
from peftcli.recipe import LoadedRecipe
from peftcli.reports.metric_facts import MetricFacts
from peftcli.reports.record import (
    Answers,
    DifferenceRecord,
    Failure,
    Interval,
    Intervals,
    RunRecord,
    Seconds,
    SeedRecord,
)
from peftcli.reports.seal import hashes_beside, sealed
from peftcli.reports.writing import write_reports
from peftcli.runs.draft import Draft
from peftcli.runs.folder import write_recipe
from peftcli.runs.folder_lock import owned_folder
from peftcli.runs.gates import gate_results
from peftcli.runs.locating import read_record
from peftcli.runs.locking import inputs_of, with_results
from peftcli.runs.own_files import RECIPE_NAME, RECORD_NAME
from peftcli.runs.place import RunPlace

RunOne = Callable[[Draft, bool], RunRecord]
"""Runs a draft; the flag says whether its folder holds a run to go on with."""
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % quantiles of Student's t for 1 to 30 degrees of freedom."""


def mean_interval(values: Sequence[float]) -> tuple[float, Interval]:
    """Mean and 95 % interval of the mean (Student's t); the interval of a single value is the value itself."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, (mean, mean)
    freedom = len(values) - 1
    # beyond 30 degrees Student's quantile is 1.96 + 2.4/n to within 0.2 %
    quantile = _T_975[freedom - 1] if freedom <= len(_T_975) else 1.96 + 2.4 / freedom
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def seed_folder(folder: Path, seed: int) -> Path:
    """Where the run of a seed lies."""
    return folder / f"seed-{seed}"


def of_seed(loaded: LoadedRecipe, seed: int) -> LoadedRecipe:
    """The recipe of one seed's run."""
    return dataclasses.replace(loaded, recipe=loaded.recipe.model_copy(update={"seed": seed, "seeds": 1}))


def run_seeds(
    loaded: LoadedRecipe,
    folder: Path,
    started: float,
    run_one: RunOne,
    *,
    planned: Prepared | None = None,
    place: RunPlace | None = None,
) -> RunRecord:
    """Runs every seed that `folder` does not hold yet, goes on with those that it half holds, and sums them up.

    `planned`: the first seed's run, where that is known already. `place`: of a new run, which moves as a whole.
    Raises what a run raises; the record of `folder` then says how far it came.
    """
    seeds = [loaded.recipe.seed + number for number in range(loaded.recipe.seeds)]
    done: list[RunRecord] = []
    prepared: Prepared | None = None
    try:
        for seed in seeds:
            found = _finished(seed_folder(folder, seed))
            if found is None:
                # each seed's clock is its own, but the first one's begins with the command
                begun = started if not done and prepared is None else time.monotonic()
                draft = Draft(seed_folder(folder, seed), of_seed(loaded, seed), begun, place=place)
                if prepared is None:
                    draft.prepared = prepared = planned or prepare_run(draft.loaded)
                    write_recipe(folder, loaded, prepared.plan.resolved)
                with owned_folder(draft.folder):
                    try:
                        found = run_one(draft, (draft.folder / RECIPE_NAME).is_file())
                    finally:
                        # the run may have taken another run's place meanwhile, and its folder with it
                        folder = draft.folder.parent
                done.append(found)
                if draft.late_signal is not None and len(done) < len(seeds):
                    # a signal that came while a finished seed was written
                    raise _stopped_between(draft.late_signal, seed, folder)
            else:
                done.append(found)
    except PeftcliError as error:
        if done:
            _write(folder, _stopped(loaded, folder, seeds, done, error))
        raise
    if prepared is not None:
        _write_lock(dataclasses.replace(prepared, loaded=loaded), folder, seeds, done)
    return _write(folder, summary(loaded, folder, seeds, done))


def _stopped_between(number: int, seed: int, folder: Path) -> Interrupted:
    return Interrupted(
        f"stopped by {signal.Signals(number).name} after the run of seed {seed}",
        signal_number=number,
        where=str(folder),
        fix="`peft resume` continues with the next seed",
    )


def _finished(folder: Path) -> RunRecord | None:
    record = read_record(folder)
    return RunRecord.model_validate(record) if record.get("status") == "completed" else None


def _write(folder: Path, record: RunRecord) -> RunRecord:
    # the record is made from that of a seed, whose files are others
    own = hashes_beside(folder) if record.status == "completed" else {}
    record = record.model_copy(update={"run_files": own})
    files.write_text(folder / RECORD_NAME, sealed(record.to_json()))
    write_reports(folder)
    return record


def summary(loaded: LoadedRecipe, folder: Path, seeds: Sequence[int], done: Sequence[RunRecord]) -> RunRecord:
    """One record of several: metrics are means with their intervals over seeds, costs are sums, memory the largest."""
    first = done[0]
    evaluations, known = [record.evaluation for record in done], first.evaluation.facts
    base, base_intervals = _means([(each.base, each.intervals.base) for each in evaluations], known)
    tuned, tuned_intervals = _means([(each.tuned, each.intervals.tuned) for each in evaluations], known)
    facts = {
        "name": loaded.name,
        "seed": loaded.recipe.seed,
        "tokens": sum(record.tokens for record in done),
        "trained_tokens": sum(record.trained_tokens for record in done),
        "seconds": Seconds(
            startup=first.seconds.startup,
            training=sum(record.seconds.training for record in done),
            total=sum(record.seconds.total for record in done),
        ),
        "tokens_per_second": statistics.fmean(record.tokens_per_second or 0.0 for record in done),
        "peak_memory_bytes": max(record.peak_memory_bytes for record in done),
        "evaluation": first.evaluation.model_copy(
            update={
                "base": base,
                "tuned": tuned,
                "intervals": Intervals(base=base_intervals, tuned=tuned_intervals),
                "differences": _differences(done),
                "answers_base": _total(record.evaluation.answers_base for record in done),
                "answers_tuned": _total(record.evaluation.answers_tuned for record in done),
                "leaked_rows": max(record.evaluation.leaked_rows for record in done),
                "sources": [],
            }
        ),
        "adapter": None,
        "adapter_step": None,
        "updates": [],
        "events": [],
        "warnings": list(dict.fromkeys(text for record in done for text in record.warnings)),
        "expect": gate_results(loaded.recipe.expect, base, tuned) if tuned else [],
        "seeds": [
            SeedRecord(seed=seed, folder=seed_folder(folder, seed).name, tuned=record.evaluation.tuned)
            # `strict=False`: a run that was stopped has fewer records than seeds
            for seed, record in zip(seeds, done, strict=False)
        ],
    }
    return first.model_copy(update=facts)


def _means(
    scores: Sequence[tuple[Mapping[str, float | None], Mapping[str, Interval]]], known: Mapping[str, MetricFacts]
) -> tuple[dict[str, float | None], dict[str, Interval]]:
    """Means and intervals of what each seed scored, and of its intervals over rows.

    Seeds that all score the same (the base, a rate of 0 or 1) tell nothing of what other rows would give: then the
    intervals over rows count, all of them.
    """
    means: dict[str, float | None] = {}
    intervals: dict[str, Interval] = {}
    for name in scores[0][0]:
        values = [value for metrics, _ in scores if (value := metrics.get(name)) is not None]
        if len(values) < len(scores):
            continue
        means[name], (low, high) = mean_interval(values)
        over_rows = [ends[name] for _, ends in scores if name in ends]
        if low == high and over_rows:
            low, high = min(each[0] for each in over_rows), max(each[1] for each in over_rows)
        is_share = name in known and known[name].fraction
        intervals[name] = (max(0.0, low), min(1.0, high)) if is_share else (low, high)
    return means, intervals


def _differences(done: Sequence[RunRecord]) -> dict[str, DifferenceRecord]:
    """Tuned minus base of each seed, and what their scatter says; one seed alone has its own comparison."""
    first = done[0].evaluation
    if len(done) < 2:
        return first.differences
    found = {}
    for name, facts in first.facts.items():
        pairs = [(record.evaluation.base.get(name), record.evaluation.tuned.get(name)) for record in done]
        deltas = [tuned - base for base, tuned in pairs if base is not None and tuned is not None]
        if len(deltas) == len(done):
            delta, (low, high) = mean_interval(deltas)
            if low == high and name in first.differences:
                # all seeds moved by the same: what is known is the comparison on rows
                found[name] = first.differences[name]
                continue
            falls = facts.better == "lower"
            verdict: Verdict = "unclear" if low <= 0 <= high else "better" if (delta < 0) == falls else "worse"
            found[name] = DifferenceRecord(
                delta=delta, interval=(low, high), test="Student's t over seeds", verdict=verdict
            )
    return found


def _total(each: Iterable[Answers]) -> Answers:
    found = list(each)
    return Answers(count=sum(one.count for one in found), cut=sum(one.cut for one in found))


def _stopped(
    loaded: LoadedRecipe, folder: Path, seeds: Sequence[int], done: Sequence[RunRecord], error: PeftcliError
) -> RunRecord:
    failure = Failure(
        error=type(error).__name__,
        exit_code=exit_code_of(error),
        message=f"seed {seeds[len(done)]}, after {len(done)} of {len(seeds)}: {error.render().removeprefix('error: ')}",
    )
    status = "interrupted" if isinstance(error, Interrupted) else "failed"
    return summary(loaded, folder, seeds, done).model_copy(update={"status": status, "failure": failure})


def _write_lock(prepared: Prepared, folder: Path, seeds: Sequence[int], done: Sequence[RunRecord]) -> None:
    locks = [read_lock(seed_folder(folder, seed) / LOCK_NAME) for seed in seeds]
    lock = inputs_of(prepared, folder)
    lock = lock.model_copy(
        update={
            "base": lock.base.model_copy(update={"fingerprint": locks[0].base.fingerprint}),
            "settings": locks[0].settings,
        }
    )
    runs = [run for each in locks if each.expected is not None for run in each.expected.runs]
    evaluations = [record.evaluation for record in done]
    sides = (
        [Measured(each.base, each.intervals.base, each.facts) for each in evaluations],
        [Measured(each.tuned, each.intervals.tuned, each.facts) for each in evaluations],
    )
    write_lock(folder / LOCK_NAME, with_results(lock, runs, *sides))
