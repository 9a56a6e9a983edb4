"""Name -> task, found by file or entry point, loaded only when asked for. Importing this imports no torch."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from peftcli.errors import RecipeError

if TYPE_CHECKING:
    from peftcli.tasks.base import Task

ENTRY_POINT_GROUP = "peftcli.tasks"
DEFAULT_TASK = "causal-lm"
"""What a recipe without `task` learns."""
FOREIGN_TASK_NAMES = {
    **dict.fromkeys(("CAUSAL_LM", "sft", "pt", "clm"), "causal-lm"),
    **dict.fromkeys(("dpo", "orpo", "simpo", "cpo", "ipo", "kto", "apo"), "preference"),
    **dict.fromkeys(("rm", "reward-model", "reward-modeling"), "reward"),
    "FEATURE_EXTRACTION": "embedding",
    "sentence-similarity": "embedding",
}
"""What other tools call a task -> the name here."""

_NOT_TASKS = frozenset({"base", "base_checks", "config", "preference_config", "row_checks", "registry"})


@functools.cache
def _outside_tasks() -> dict[str, metadata.EntryPoint]:
    return {point.name.replace("_", "-"): point for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}


@functools.cache
def task_names() -> tuple[str, ...]:
    """All tasks, ours and those of installed packages, sorted, with hyphens."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    own = {module.name.replace("_", "-") for module in found if not module.ispkg and module.name not in _NOT_TASKS}
    return tuple(sorted(own | set(_outside_tasks())))


def resolve_task_name(name: str) -> str:
    """A name as a recipe writes it (hyphens or underscores) -> the task's own name.

    Raises `RecipeError` with the nearest names.
    """
    key = name.strip().lower().replace("_", "-")
    if key in task_names():
        return key
    theirs = {name.lower().replace("_", "-"): ours for name, ours in FOREIGN_TASK_NAMES.items()}
    if key in theirs:
        raise RecipeError(f"unknown task `{name}`", fix=f"did you mean `{theirs[key]}`?")
    near = difflib.get_close_matches(key, task_names(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(f'`{other}`' for other in near)}?" if near else f"known: {', '.join(task_names())}"
    raise RecipeError(f"unknown task `{name}`", fix=hint)


def labelling_task(auto_class: str) -> Task:
    """The task whose models an auto class opens and that answers with labels."""
    found = (task(name) for name in task_names())
    return next(each for each in found if "labels" in each.metric_needs and each.auto_class == auto_class)


def vector_task(auto_class: str) -> Task:
    """The task whose models an auto class opens and that answers with one vector of a text."""
    found = (task(name) for name in task_names())
    return next(each for each in found if "vectors" in each.metric_needs and each.auto_class == auto_class)


def task(name: str) -> Task:
    """The task of a name; ours import no torch until they compute. Raises `RecipeError` as `resolve_task_name` does."""
    key = resolve_task_name(name)
    outside = _outside_tasks().get(key)
    if outside is not None:
        loaded: Task = outside.load()
        return loaded
    found: Task = importlib.import_module(f"peftcli.tasks.{key.replace('-', '_')}").TASK
    return found
