"""`peft evaluate`: metrics of base and tuned model on a recipe's evaluation data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftcli.adapters.reading import load
from peftcli.adapters.starting import read_start
from peftcli.data.facts import DataFacts
from peftcli.data.prepare import prepare
from peftcli.data.store import TokenStore
from peftcli.errors import DataError, RecipeError
from peftcli.evaluation.evaluate import Evaluation, evaluate
from peftcli.jobs.adapter_base import load_base
from peftcli.jobs.opening import OpenModel, run_recipe
from peftcli.jobs.whole_models import open_to_score
from peftcli.lock.document import LOCK_NAME
from peftcli.lock.lock_file import read_lock
from peftcli.models.base_config import sentence_folder
from peftcli.models.heads import LabelHead
from peftcli.planning.machine import resolve_threads
from peftcli.recipe import LoadedRecipe, load_recipe
from peftcli.reports.record import EvaluationRecord
from peftcli.reports.scores import metric_label, score_of
from peftcli.reports.tables import text_table
from peftcli.reports.terminal import score_table
from peftcli.runs.assembly import generation_seed
from peftcli.runs.referring import with_reference
from peftcli.runs.scoring import evaluation_record, warnings_of
from peftcli.streams import tell
from peftcli.tasks.base import Task


@dataclass(frozen=True)
class EvaluateReport:
    """Base and tuned model on the same rows; the base is None for a whole model without one."""

    base: Evaluation | None
    tuned: Evaluation
    recipe: str
    evaluation: EvaluationRecord
    """The two as a record holds them, compared in pairs."""

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints, as plain data."""
        facts: dict[str, Any] = self.evaluation.model_dump(mode="json")
        return {"recipe": self.recipe, **facts}


def evaluate_adapter(
    path: str | Path,
    recipe: str | Path | None = None,
    *,
    base: str | None = None,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> EvaluateReport:
    """Scores base and tuned model on the evaluation rows of the run's recipe, or of another one."""
    opened = open_to_score(path, base=base, say=say)
    loaded = load_recipe(Path(recipe), overrides) if recipe is not None else run_recipe(opened.location, overrides)
    for warning in loaded.warnings:
        tell(f"warning: {warning}")
    _require_its_task(opened, loaded)
    # sums depend on how many threads share them: the adapter on disk then has the very scores that training told
    torch.set_num_threads(resolve_threads(loaded.recipe.threads))
    task = _task_of(opened, loaded)
    store, facts = evaluation_rows(loaded, opened, task)
    if recipe is None and not overrides:
        _tell_other_rows(opened, facts)
    store = _compared_with_start(opened, loaded, task, store)
    plain = None
    if opened.has_base:
        with opened.as_base() as model:
            plain = score(loaded, opened, task, store, model, chat=facts.holds_chats)
    tuned = score(loaded, opened, task, store, opened.model, chat=facts.holds_chats)
    record = evaluation_record(plain, tuned, facts, loaded.recipe.evaluation.metrics)
    return EvaluateReport(plain, tuned, str(loaded.path), record)


def _tell_other_rows(opened: OpenModel, facts: DataFacts) -> None:
    """The scores of a run are of the rows that it had; of others they are other scores, whatever they are called."""
    run = opened.location.run
    path = run / LOCK_NAME if run is not None else None
    locked = read_lock(path).data.validation if path is not None and path.is_file() else None
    if locked is not None and facts.validation is not None and facts.validation.stream_sha256 != locked.stream_sha256:
        tell("warning: the evaluation rows are not those of the run: its data, tokenizer or template has changed since")


def _require_its_task(opened: OpenModel, loaded: LoadedRecipe) -> None:
    """A task scores the models of its own class: another one's answers are no numbers of it."""
    wanted = loaded.recipe.learns().auto_class
    if wanted != opened.auto_class:
        raise RecipeError(
            f"{opened.made_for}, which `task: {loaded.recipe.task}` does not score",
            where=str(loaded.path),
            fix="a recipe of its own task",
        )


def _compared_with_start(opened: OpenModel, loaded: LoadedRecipe, task: Task, store: TokenStore) -> TokenStore:
    """The rows with what the model at the start says of them, where the task compares with it: the base, or the adapter
    that training went on from. Raises `RecipeError` where that is not known."""
    if not task.has_reference:
        return store
    name, pad = loaded.recipe.model.init_adapter, int(opened.tokenizer.pad_token_id or 0)
    if not opened.has_base or (name is not None and opened.location.whole):
        raise RecipeError(
            f"`task: {task.name}` compares with the model that training started from, which a whole model does not name",
            fix="evaluate the run or its adapter" if name is not None else "name it: --model BASE",
        )
    if name is None:
        with opened.as_base() as model:
            return with_reference(task, model, store, pad_token_id=pad)
    other = load_base(
        opened.location, opened.source, auto_class=opened.auto_class, dtype=opened.dtype, device=opened.device
    )
    load(other, read_start(name).folder)
    return with_reference(task, other, store, pad_token_id=pad)


def _task_of(opened: OpenModel, loaded: LoadedRecipe) -> Task:
    """The recipe's task, told the labels that the model gives."""
    task = loaded.recipe.learns()
    if task.reads_base:
        return task.for_base(opened.location.adapter, sentence_folder(opened.source))
    return task.with_head(LabelHead.of_config(opened.model.config)) if task.learns_labels else task


def evaluation_rows(loaded: LoadedRecipe, opened: OpenModel, task: Task) -> tuple[TokenStore, DataFacts]:
    """The validation rows of a recipe, as training would see them, and the facts of its data."""
    if not loaded.recipe.data.may_validate:
        raise RecipeError(
            "the recipe has no evaluation rows",
            where=str(loaded.path),
            fix="set `data.validation`, for instance to 0.05",
        )
    data = prepare(
        loaded.recipe.data,
        tokenizer=opened.tokenizer,
        folder=loaded.folder,
        seed=loaded.recipe.seed,
        encoding=task.encoding,
    )
    if data.validation is None or not len(data.validation):
        raise DataError("no evaluation row is left", where=str(loaded.path), fix="check `data.validation`")
    task.require_known(data.validation)
    return task.arrange(data.validation), data.facts


def score(
    loaded: LoadedRecipe, opened: OpenModel, task: Task, store: TokenStore, model: nn.Module, *, chat: bool
) -> Evaluation:
    """Metrics of a model as it stands. `chat`: whether the rows went through the chat template."""
    return evaluate(
        model,
        task,
        store,
        opened.tokenizer,
        config=loaded.recipe.evaluation,
        generation=loaded.recipe.generation,
        pad_token_id=int(opened.tokenizer.pad_token_id or 0),
        seed=generation_seed(loaded.recipe.seed),
        chat=chat,
    )


def scores_text(scores: EvaluateReport) -> str:
    """What `peft evaluate` prints: metrics with intervals, how they were compared, and what to doubt."""
    evaluation = scores.evaluation
    recipe, here = Path(scores.recipe), Path.cwd()
    shown = recipe.relative_to(here) if recipe.is_relative_to(here) else recipe
    lines = [f"{evaluation.rows or 0:,} rows of {shown}", score_table(evaluation)]
    lines += [f"{name} of base and tuned model compared by {test}" for test, name in _tests(evaluation).items()]
    for source in evaluation.sources:
        sides = {"base": source.base, "tuned": source.tuned} if evaluation.base else {"model": source.tuned}
        rows = [
            [metric_label(name), *(score_of(evaluation, name).shown(side.get(name)) for side in sides.values())]
            for name in source.tuned
        ]
        lines += [f"{source.name}: {source.rows:,} rows", text_table(["metric", *sides], rows, numeric=(1, 2))]
    return "\n".join([*lines, *warnings_of(evaluation)])


def _tests(evaluation: EvaluationRecord) -> dict[str, str]:
    """Test -> the metrics that it compared."""
    found: dict[str, list[str]] = {}
    for name, difference in evaluation.differences.items():
        found.setdefault(difference.test, []).append(metric_label(name))
    return {test: ", ".join(names) for test, names in found.items()}
