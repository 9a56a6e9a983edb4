"""Rules that join several keys of one recipe, and need neither model nor data."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from peftcli.adapters.config import HEADS_FIELD, MethodConfig
from peftcli.adapters.registry import config_class, method_names
from peftcli.data.config import SourceConfig
from peftcli.data.names import own_format_names
from peftcli.data.sources import BUILTIN_PREFIX
from peftcli.evaluation.registry import metric_names, needs_of
from peftcli.recipe.schema import Recipe
from peftcli.tasks.base import Task
from peftcli.tasks.registry import task as find_task
from peftcli.tasks.registry import task_names

EVALUATION_KEYS = ("every", "batch_size", "rows", "metrics", "samples")
HALF = ("bfloat16", "float16")
SUSPICIOUS_RATE = 1.0
SMALLEST_NORM = 1e-6
"""Below it single entries come near the term of 1e-8 that optimizers add to what they divide by."""
SCHEDULE_FIX = "warm up over a tenth of the steps or less, or let the decay take a smaller share"
"""Advice for a schedule whose parts do not fit into the run."""


@dataclass(frozen=True)
class BrokenRule:
    """A rule that does not hold: the keys that it joins (the first is where to look), and what to do."""

    keys: tuple[str, ...]
    message: str
    fix: str


def broken_rules(recipe: Recipe, is_given: Callable[[str], bool]) -> list[BrokenRule]:
    """Every rule that a recipe breaks. `is_given(key)`: whether the recipe itself names a key."""
    return [
        *_length(recipe, is_given),
        *_validation(recipe, is_given),
        *_metrics(recipe, is_given),
        *_task(recipe, is_given),
        *_arithmetic(recipe),
        *_sharding(recipe),
    ]


def idle_settings(recipe: Recipe) -> list[str]:
    """Warnings: settings that have no effect, and values that are rarely meant."""
    found = list(recipe.generation.idle_settings())
    if recipe.model.revision is not None and recipe.model.base.startswith(("/", "builtin:")):
        found.append("model.revision has no effect on a base that is not from the Hub")
    if _only_builtin(recipe.data.validation_sources) and not _only_builtin(recipe.data.train_sources):
        found.append(
            "data.validation is rows that ship with peftcli, not yours: it measures a different task from the one you train"
        )
    if recipe.training.sharding != "none" and recipe.training.processes == 1:
        found.append(
            "training.sharding spreads the base over processes, of which there is one: start the run by a launcher, "
            "or set training.processes"
        )
    rate = recipe.training.learning_rate
    if isinstance(rate, float) and rate > SUSPICIOUS_RATE:
        found.append(f"training.learning_rate {rate:g} is above 1; most methods need 1e-5 to 1e-2")
    return found


def _only_builtin(sources: Sequence[SourceConfig]) -> bool:
    return bool(sources) and all(source.path.startswith(BUILTIN_PREFIX) for source in sources)


def _task(recipe: Recipe, is_given: Callable[[str], bool]) -> Iterator[BrokenRule]:
    """What a task allows of formats, metrics, methods and sections of its own."""
    task = find_task(recipe.task)
    yield from _task_sections(task, is_given)
    yield from _task_formats(task, recipe)
    yield from _task_method(task, recipe)
    yield from _task_rows(task, recipe, is_given)
    if is_given("evaluation.metrics"):
        yield from _task_metrics(task, recipe)


def _task_sections(task: Task, is_given: Callable[[str], bool]) -> Iterator[BrokenRule]:
    for section in sorted({each.options for each in map(find_task, task_names()) if each.options} - {task.options}):
        if is_given(section):
            yield BrokenRule((section, "task"), f"`{section}` has no meaning for `task: {task.name}`", "leave it out")


def _task_formats(task: Task, recipe: Recipe) -> Iterator[BrokenRule]:
    formats = {recipe.data.format, *(source.format for source in recipe.data.train_sources)} - {None, "auto"}
    # a task lists formats of ours: what one of an outside package fits, no list here can say
    for name in sorted(str(each) for each in formats if each in own_format_names() and each not in task.formats):
        yield BrokenRule(
            ("data.format", "task"),
            f"`task: {task.name}` cannot train on rows of the format {name}",
            f"formats: {', '.join(task.formats)}; or another `task`",
        )


def _task_method(task: Task, recipe: Recipe) -> Iterator[BrokenRule]:
    method = recipe.method
    if task.learns_labels and not method.can_train_heads():
        able = [name for name in method_names() if config_class(name).can_train_heads()]
        yield BrokenRule(
            ("method.type", "task"),
            f"{method.name} trains no head, and `task: {task.name}` draws a new one",
            f"use one of {', '.join(able)}",
        )
    if task.compares_rows and recipe.training.batch_size == 1:
        yield BrokenRule(
            ("training.batch_size", "task"),
            f"`task: {task.name}` compares the rows of a batch, and one row has none beside it",
            "set `training.batch_size: 32`, or more: each other row is an example of what does not belong together",
        )
    if recipe.model.add_tokens and not _trains_new_tokens(method):
        able = [name for name in method_names() if config_class(name).can_train_tokens()]
        yield BrokenRule(
            ("method.type", "model.add_tokens"),
            f"{method.name} trains no rows of new tokens",
            f"use {', '.join(able)}, or a method with `{HEADS_FIELD}` that names the tables of the embeddings",
        )


def _trains_new_tokens(method: MethodConfig) -> bool:
    # a selection trains tensors of the base itself, the tables among them
    return method.can_train_tokens() or method.kind == "selection" or bool(getattr(method, HEADS_FIELD, None))


def _task_rows(task: Task, recipe: Recipe, is_given: Callable[[str], bool]) -> Iterator[BrokenRule]:
    if recipe.data.streaming and not task.streams:
        yield BrokenRule(
            ("data.streaming", "task"),
            f"`task: {task.name}` does not read rows while training",
            "set `data.streaming: false`",
        )
    if task.train_on is not None and is_given("data.train_on") and recipe.data.train_on != task.train_on:
        yield BrokenRule(
            ("data.train_on", "task"),
            f"`data.train_on: {recipe.data.train_on}` has no meaning for `task: {task.name}`: it compares whole answers",
            "leave it out",
        )
    if recipe.data.thought_share != 1 and not task.weighs_thoughts:
        yield BrokenRule(
            ("data.thoughts", "task"),
            f"`data.thoughts: {recipe.data.thoughts}` has no meaning for `task: {task.name}`: "
            + ("it compares whole answers" if task.train_on else "its rows hold no thoughts before an answer"),
            "leave it out",
        )
    if recipe.data.truncation == "split" and not task.splits_rows:
        yield BrokenRule(
            ("data.truncation", "task"),
            f"`task: {task.name}` cannot split rows: the texts of one belong together",
            "set `data.truncation: drop`, left or right",
        )


def _task_metrics(task: Task, recipe: Recipe) -> Iterator[BrokenRule]:
    for name in recipe.evaluation.metrics:
        if (needs := needs_of(name)) is not None and needs not in task.metric_needs:
            fitting = [each for each in metric_names() if needs_of(each) in task.metric_needs]
            yield BrokenRule(
                ("evaluation.metrics", "task"),
                f"metric `{name}` reads {needs}, which `task: {task.name}` has none of",
                f"metrics: {', '.join(fitting)}",
            )


def _length(recipe: Recipe, is_given: Callable[[str], bool]) -> Iterator[BrokenRule]:
    training = recipe.training
    if isinstance(training.lengthened, str):
        yield BrokenRule(
            ("training.lengthened",),
            "`training.lengthened` says how the schedule of a run that has begun goes on",
            f"peft resume RUN --set training.epochs=5 --set training.lengthened={training.lengthened}",
        )
    if is_given("training.epochs") and is_given("training.max_steps"):
        yield BrokenRule(
            ("training.max_steps", "training.epochs"),
            "`training.epochs` and `training.max_steps` are two ways to say how long",
            "keep one of the two",
        )
    if recipe.data.streaming and training.max_steps is None:
        yield BrokenRule(
            ("data.streaming", "training.max_steps"),
            "`data.streaming` needs `training.max_steps`: a stream has no end",
            "say how many steps to train",
        )
    if training.max_steps is not None and (fault := training.schedule_fault(training.max_steps)) is not None:
        key = "training.warmup_steps" if training.warmup_steps is not None else "training.warmup_ratio"
        yield BrokenRule((key, "training.max_steps"), fault, SCHEDULE_FIX)


def _validation(recipe: Recipe, is_given: Callable[[str], bool]) -> Iterator[BrokenRule]:
    if recipe.data.may_validate:
        return
    fix = "set `data.validation`, for instance 0.05 (a share of the training rows)"
    for key in EVALUATION_KEYS:
        if is_given(f"evaluation.{key}"):
            yield BrokenRule(
                (f"evaluation.{key}", "data.validation"), "there are no validation rows to evaluate on", fix
            )
            break
    if recipe.training.early_stopping is not None:
        yield BrokenRule(
            ("training.early_stopping", "data.validation"), "`training.early_stopping` needs validation rows", fix
        )
    if is_given("checkpoint.best"):
        yield BrokenRule(
            ("checkpoint.best", "data.validation"),
            f"`checkpoint.best: {recipe.checkpoint.best}` needs validation rows",
            fix,
        )
    if recipe.expect:
        yield BrokenRule(("expect", "data.validation"), "`expect` needs validation rows", fix)


def _metrics(recipe: Recipe, is_given: Callable[[str], bool]) -> Iterator[BrokenRule]:
    # the loss is always computed; `dict.fromkeys` keeps the order for the message
    computed = list(dict.fromkeys(f"eval_{name}" for name in ("loss", *recipe.evaluation.metrics)))
    wanted = [(f"expect.{name}", name) for name in recipe.expect]
    if recipe.training.early_stopping is not None:
        wanted.append(("training.early_stopping.metric", recipe.training.early_stopping.metric))
    if is_given("checkpoint.best") and recipe.checkpoint.best is not None:
        wanted.append(("checkpoint.best", recipe.checkpoint.best))
    for key, name in wanted:
        if name not in computed:
            yield BrokenRule(
                (key, "evaluation.metrics"), f"`{key}`: `{name[:60]}` is not computed", _metric_fix(name, computed)
            )


def _metric_fix(name: str, computed: list[str]) -> str:
    known = name.replace("-", "_").removeprefix("eval_")
    if known in metric_names():
        if f"eval_{known}" in computed:
            return f"did you mean `eval_{known}`?"
        return f"add `{known}` to `evaluation.metrics`, and call it `eval_{known}` here"
    near = difflib.get_close_matches(f"eval_{known}", computed, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else f"computed are {', '.join(f'`{metric}`' for metric in computed)}"


def _arithmetic(recipe: Recipe) -> Iterator[BrokenRule]:
    if recipe.training.precision == "fp32" and recipe.model.dtype in HALF:
        yield BrokenRule(
            ("training.precision", "model.dtype"),
            f"`precision: fp32` with `dtype: {recipe.model.dtype}` would compute in {recipe.model.dtype}",
            "leave one of the two at auto",
        )
    rate, decay = recipe.training.learning_rate, recipe.training.weight_decay
    # decoupled decay takes `rate * decay` of a weight in each step (arXiv:1711.05101)
    if isinstance(rate, float) and rate * decay >= 1:
        yield BrokenRule(
            ("training.weight_decay", "training.learning_rate"),
            f"`weight_decay: {decay:g}` with `learning_rate: {rate:g}` takes away all that was learned at each step",
            "a weight_decay of 0 to 0.1, which is what most recipes have",
        )
    norm = recipe.training.max_grad_norm
    if norm and norm < SMALLEST_NORM:
        yield BrokenRule(
            ("training.max_grad_norm",),
            f"`max_grad_norm: {norm:g}` leaves nothing of any gradient",
            "most recipes have 1; 0 or null does not clip",
        )


def _sharding(recipe: Recipe) -> Iterator[BrokenRule]:
    """What cannot go with a base that is spread over processes."""
    training, model = recipe.training, recipe.model
    if training.sharding == "none":
        return
    refused = {
        "model.quantization": (model.quantization, "packed weights are not cut apart", "leave one of the two out"),
        "training.compile": (training.compile, "compiled layers would not gather their weights", "set it to false"),
    }
    for key, (value, why, fix) in refused.items():
        if value:
            yield BrokenRule((key, "training.sharding"), f"`{key}` does not go with `training.sharding`: {why}", fix)
