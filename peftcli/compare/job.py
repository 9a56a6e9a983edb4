"""`peft compare`, read top to bottom: members -> plans -> runs -> figures -> verdict -> files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from peftcli import files
from peftcli.compare.budget import Budget, as_settings, parse_budget
from peftcli.compare.documents import RECOMMENDED_NAME, Document
from peftcli.compare.figures import Variant, variants_of
from peftcli.compare.judging import Verdict, judge
from peftcli.compare.members import Member, build_members, parse_vary
from peftcli.compare.places import member_places
from peftcli.compare.plans import (
    AUTO_RATE,
    Known,
    parts_of,
    plans_of,
    require_one_choice,
    require_one_length,
    require_tunable,
    within,
)
from peftcli.compare.session import Course, Ended, require_free
from peftcli.compare.timing import MEASURED_STEPS, measure
from peftcli.compare.tuning import tune
from peftcli.compare.validation_rows import Key, RowParts
from peftcli.errors import DataError, Fault
from peftcli.evaluation.registry import REPORT_PREFIX, metric_facts, resolve_metric_name
from peftcli.recipe import LoadedRecipe, flat_recipe, load_recipe
from peftcli.redaction import redacted_values
from peftcli.reports import numbers
from peftcli.reports.tables import text_table

_NOT_REQUESTED = ("output", "name")


@dataclass(frozen=True)
class Comparison:
    """What `peft compare` found."""

    folder: Path
    document: dict[str, Any]
    variants: tuple[Variant, ...]
    verdict: Verdict


def compare(
    path: str | Path,
    *,
    methods: Sequence[str] = (),
    vary: Sequence[str] = (),
    seeds: int = 1,
    budget: str | None = None,
    candidates: int = 0,
    jobs: int | None = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    quiet: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Trains every member that `output` does not hold yet and says which is best.

    `vary`: `KEY=a,b,c` each. `budget`: `200steps`, `1Mtokens` or `10min` for each member (default: what the recipe says).
    `candidates`: choose each name's learning rate among so many first, on validation rows that score no member.
    `jobs`: members that train at a time (default: one for each GPU, one on a CPU).
    Raises `RecipeError` with every fault of every member before anything is trained, `DataError` where no member came to
    its end, `StorageError` where `output` holds something else or is full, `Interrupted`.
    """
    path = Path(path)
    loaded = load_recipe(path, overrides)
    varied = parse_vary(vary)
    wanted = None if budget is None else parse_budget(budget)
    require_one_length(wanted, varied)
    members = build_members(loaded, methods, varied, seeds, overrides)
    if candidates:
        # before the plans, in which members that differ in the rate alone are the same run
        require_one_choice(varied)
    folder = _folder(loaded, output)
    request = _request(loaded, members, overrides, {"budget": budget, "tune": candidates})
    require_free(folder, request)
    say(f"planning {len(members)} members")
    plans: Mapping[str, Known] = plans_of(path, overrides, members, [AUTO_RATE] if candidates else [])
    if candidates:
        require_tunable(plans)
    parts = parts_of(path, overrides, members, plans) if candidates else None
    final = parts.final if parts is not None else {}
    document = Document(folder, request, {name: known.rows for name, known in plans.items()})
    places = member_places(loaded.recipe.device, jobs)
    course = Course(folder, path, tuple(overrides), places, quiet=quiet, say=say)
    if wanted is not None:
        members, plans = _within(document, course, members, plans, wanted)
    document.begin()
    if parts is not None:
        members = _tuned(document, course, members, plans, parts, candidates)
    ended = _scored(course.bring(members, told=lambda found: _tell(document, found, final)), final)
    metric = _headline(loaded)
    variants = variants_of(ended, metric)
    if not variants:
        raise DataError("no member came to its end", faults=_failures([*ended, *document.lost]))
    verdict = judge(variants, metric, metric_facts(metric), _notes(document, wanted, final))
    return Comparison(folder, document.write_all(ended, variants, verdict), tuple(variants), verdict)


def _within(
    document: Document, course: Course, members: Sequence[Member], plans: Mapping[str, Known], budget: Budget
) -> tuple[list[Member], Mapping[str, Known]]:
    """Members with the steps of a budget; one in time is measured, and names whose measurement failed are left out."""
    if budget.unit == "seconds":
        document.begin()
        first = [member for member in members if member.seed == members[0].seed]
        plans, document.timed, document.lost = measure(first, plans, budget, course.bring)
        for each in document.timed:
            course.say(each.sentence())
    else:
        plans = within(plans, budget)
    kept = [member for member in members if member.name in plans]
    return [member.with_settings(*as_settings(plans[member.name].steps)) for member in kept], plans


def _tell(document: Document, found: Sequence[Ended], final: Mapping[Key, np.ndarray]) -> None:
    document.write(_scored(found, final))


def _scored(ended: Sequence[Ended], final: Mapping[Key, np.ndarray]) -> list[Ended]:
    return [replace(each, final=final.get((each.member.name, each.member.seed))) for each in ended]


def _tuned(
    document: Document,
    course: Course,
    members: Sequence[Member],
    plans: Mapping[str, Known],
    parts: RowParts,
    candidates: int,
) -> list[Member]:
    """The members under the settings that tuning chose; those of a name for which no trial came to its end stay as they
    are, and fail or not by themselves."""
    chosen: dict[str, tuple[str, ...]] = {}
    # a name's first member has the first seed
    for member in (member for member in members if member.name not in chosen):
        known = plans[member.name]
        found = tune(
            member, known.recipe, auto=known.auto, whole=known.steps, candidates=candidates,
            rows=parts.tuning[member.name], bring=course.bring,
        )  # fmt: skip
        course.say(found.sentence())
        document.tuned.append(found)
        document.write([])
        chosen[member.name] = found.chosen.overrides if found.chosen is not None else ()
    return [member.with_settings(*chosen[member.name]) for member in members]


def _notes(document: Document, budget: Budget | None, final: Mapping[Key, np.ndarray]) -> list[str]:
    lines = []
    if document.timed and budget is not None:
        steps = "; ".join(each.sentence() for each in document.timed)
        lines.append(
            f"{budget.text} of training each, as measured over {MEASURED_STEPS} steps before ({steps}); evaluation comes "
            "on top, and a rerun takes the same numbers of steps."
        )
    if document.tuned:
        scored = len(next(iter(final.values())))
        lines.append(f"Tuned by the loss on validation rows of their own; scores are on the other {scored}.")
        lines += [f"{each.sentence()}." for each in document.tuned]
    return lines


def _folder(loaded: LoadedRecipe, output: str | Path | None) -> Path:
    return Path(output).expanduser().absolute() if output else Path("runs").absolute() / f"{loaded.name}-compare"


def _headline(loaded: LoadedRecipe) -> str:
    """The recipe's first metric, as everywhere."""
    return REPORT_PREFIX + resolve_metric_name(loaded.recipe.evaluation.metrics[0])


def _request(
    loaded: LoadedRecipe, members: Sequence[Member], settings: Sequence[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    recipe = {key: value for key, value in flat_recipe(loaded.recipe).items() if key not in _NOT_REQUESTED}
    named = [{"name": member.name, "seed": member.seed, "overrides": list(member.overrides)} for member in members]
    given = {key: value for key, value in options.items() if value}
    document: dict[str, Any] = redacted_values(
        {"recipe": recipe, "members": named, "settings": list(settings), **given}
    )
    # as it will be read again
    again: dict[str, Any] = json.loads(files.to_json(document))
    return again


def _failures(ended: Sequence[Ended]) -> list[Fault]:
    return [Fault(f"{each.member.folder}: {each.failure}") for each in ended if each.failure]


def comparison_text(found: Comparison) -> str:
    """What `peft compare` prints."""
    facts = found.verdict.facts
    ordered = [found.verdict.best, *(other for other, _ in found.verdict.others)]
    rows = [
        [
            variant.name,
            numbers.metric_value(facts, variant.value),
            f"{numbers.metric_value(facts, variant.low)} to {numbers.metric_value(facts, variant.high)}",
            numbers.count(variant.trainable),
            numbers.data_size(variant.peak_memory_bytes),
            numbers.duration(variant.seconds),
        ]
        for variant in ordered
    ]
    header = ["member", found.verdict.metric, "95 %", "trained", "memory", "training"]
    table = text_table(header, rows)
    lines = [table, *found.verdict.sentences(), f"report       {found.folder / 'report.html'}"]
    return "\n".join([*lines, f"recommended  {found.folder / RECOMMENDED_NAME}"])
