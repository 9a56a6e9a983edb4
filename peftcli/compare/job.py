"""`peft compare`, read top to bottom: members -> plans -> runs -> figures -> verdict -> files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.compare.budget import budget_steps
from peftcli.compare.figures import Variant, member_line, variants_of
from peftcli.compare.judging import Verdict, judge
from peftcli.compare.members import Member, build_members, parse_vary
from peftcli.compare.page import render_page
from peftcli.compare.session import NAME, Ended, begin, end_member, require_free
from peftcli.errors import DataError, Fault, PeftcliError
from peftcli.evaluation.registry import REPORT_PREFIX, metric_facts, resolve_metric_name
from peftcli.planning.plan import prepare_run
from peftcli.recipe import LoadedRecipe, flat_recipe, load_recipe
from peftcli.redaction import redacted_name, redacted_values
from peftcli.reports import numbers
from peftcli.reports.tables import text_table
from peftcli.runs.own_files import RECIPE_NAME

RECOMMENDED_NAME = "recommended.yaml"
_STEPS = "training.max_steps={steps}"
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
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    quiet: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Trains every member that `output` does not hold yet and says which is best.

    `vary`: `KEY=a,b,c` each. `budget`: `200steps` or `1Mtokens` for each member (default: what the recipe says).
    Raises `RecipeError` with every fault of every member before anything is trained, `StorageError` where `output` holds
    something else, `Interrupted`, and what stopped a member.
    """
    path = Path(path)
    loaded = load_recipe(path, overrides)
    members = build_members(loaded, methods, parse_vary(vary), seeds)
    folder = _folder(loaded, output)
    settings = [*overrides, *_budget_settings(path, overrides, members[0], budget)]
    request = _request(loaded, members, settings)
    require_free(folder, request)
    say(f"planning {len(members)} members")
    _require_plans(path, settings, members)
    metric = _headline(loaded)
    begin(folder, request)
    ended: list[Ended] = []
    for number, member in enumerate(members, 1):
        tell = partial(_tell, say, f"{number} of {len(members)}")
        ended.append(end_member(folder, path, member, settings, quiet=quiet, say=tell))
        _write_document(folder, request, ended, None)
    variants = variants_of(ended, metric)
    if not variants:
        raise DataError("no member came to its end", faults=_failures(ended))
    verdict = judge(variants, metric, metric_facts(metric))
    return Comparison(folder, _write_all(folder, request, ended, variants, verdict), tuple(variants), verdict)


def _tell(say: Callable[[str], None], place: str, line: str) -> None:
    say(f"{place}: {line}")


def _folder(loaded: LoadedRecipe, output: str | Path | None) -> Path:
    return Path(output).expanduser().absolute() if output else Path("runs").absolute() / f"{loaded.name}-compare"


def _headline(loaded: LoadedRecipe) -> str:
    """The recipe's first metric, as everywhere."""
    return REPORT_PREFIX + resolve_metric_name(loaded.recipe.evaluation.metrics[0])


def _budget_settings(path: Path, overrides: Sequence[str], member: Member, budget: str | None) -> list[str]:
    if budget is None:
        return []
    plan = prepare_run(load_recipe(path, [*overrides, *member.overrides])).plan
    per_step = plan.tokens_per_epoch / plan.resolved.steps_per_epoch
    return ["training.epochs=null", _STEPS.format(steps=budget_steps(budget, per_step))]


def _request(loaded: LoadedRecipe, members: Sequence[Member], settings: Sequence[str]) -> dict[str, Any]:
    recipe = {key: value for key, value in flat_recipe(loaded.recipe).items() if key not in _NOT_REQUESTED}
    named = [{"name": member.name, "seed": member.seed, "overrides": list(member.overrides)} for member in members]
    document: dict[str, Any] = redacted_values({"recipe": recipe, "members": named, "settings": list(settings)})
    # as it will be read again
    again: dict[str, Any] = json.loads(files.to_json(document))
    return again


def _require_plans(path: Path, settings: Sequence[str], members: Sequence[Member]) -> None:
    """Plans each name's first member, so that what cannot run is known before hours of training."""
    faults: list[Fault] = []
    first: PeftcliError | None = None
    first_seed = members[0].seed
    for member in (member for member in members if member.seed == first_seed):
        try:
            prepare_run(load_recipe(path, [*settings, *member.overrides]))
        except PeftcliError as error:
            first = first or error
            faults += [Fault(f"{member.name}: {fault.message}", fault.where, fault.fix) for fault in error.faults]
    if first is not None:
        raise type(first)("some members cannot run; nothing was trained", faults=faults)


def _failures(ended: Sequence[Ended]) -> list[Fault]:
    return [Fault(f"{each.member.folder}: {each.failure}") for each in ended if each.failure]


# -- files -------------------------------------------------------------------------------------------------------


def _write_document(
    folder: Path, request: dict[str, Any], ended: Sequence[Ended], verdict: Verdict | None
) -> dict[str, Any]:
    document = {
        "request": request,
        "members": [member_line(each, folder) for each in ended],
        "recommended": None if verdict is None else verdict.best.name,
        "why": [] if verdict is None else verdict.sentences(),
    }
    files.write_text(folder / NAME, files.to_json(document))
    return document


def _write_all(
    folder: Path, request: dict[str, Any], ended: Sequence[Ended], variants: Sequence[Variant], verdict: Verdict
) -> dict[str, Any]:
    document = _write_document(folder, request, ended, verdict)
    files.write_text(folder / "compare.csv", _csv(document["members"]))
    files.write_text(folder / "report.html", redacted_name(render_page(ended, variants, verdict)))
    recipe = (verdict.best.members[0].run / RECIPE_NAME).read_text(encoding="utf-8")
    files.write_text(folder / RECOMMENDED_NAME, recipe)
    return document


def _csv(members: Sequence[dict[str, Any]]) -> str:
    rows = [_flat(member) for member in members]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(member: dict[str, Any]) -> dict[str, Any]:
    evaluation = member.get("evaluation") or {}
    scores = {f"{side}_{name}": value for side, found in evaluation.items() for name, value in found.items()}
    vary = {f"vary_{key}": value for key, value in member["vary"].items()}
    kept = {key: value for key, value in member.items() if key not in ("evaluation", "vary")}
    return {**kept, **vary, **scores}


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
