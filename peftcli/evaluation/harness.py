"""Tasks of lm-evaluation-harness, asked of a model that is loaded already: the only place that knows that library.

Its own class for models of transformers asks the model, so prompts, few-shot examples, filters and metrics are the
harness's; seeds are its own too.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub.errors import OfflineModeIsEnabled
from torch import nn

from peftcli.errors import DataError, DeviceError, HubError, RecipeError
from peftcli.models.auto_class import WRITING

PACKAGE = "lm_eval"
EXTRA = "pip install 'peftcli[eval]'"
PROGRESS_SECONDS = 20.0
"""Between two lines of progress."""
ENDINGS = (".yaml", ".yml")
"""A name that ends so is the file of a task, in the harness's own format."""


@dataclass(frozen=True)
class HarnessScore:
    """One number of one task."""

    task: str
    metric: str
    filter: str
    """What was made of an answer before it was scored; `none`: nothing."""
    value: float
    error: float | None
    """Standard error of the mean over the task's rows; None where the harness gives none."""
    higher_is_better: bool | None
    rows: int | None
    """Rows of the task; None for the mean of a group of tasks."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is a score of."""
        return self.task, self.metric, self.filter


def require_harness() -> None:
    """Raises `DeviceError` where the harness is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise DeviceError("--tasks needs lm-evaluation-harness (the package lm-eval)", fix=EXTRA)


def harness_version() -> str:
    """As it is installed."""
    return metadata.version("lm_eval")


@dataclass(frozen=True)
class HarnessTasks:
    """Tasks whose rows were read, and what loaded them."""

    names: tuple[str, ...]
    loader: Any

    @staticmethod
    def named(names: Sequence[str]) -> HarnessTasks:
        """Tasks, groups and tags of the harness by name, or files of tasks. Raises `RecipeError` for a name that it does
        not know, `DataError` where a task cannot be read."""
        require_harness()
        from lm_eval.tasks import TaskManager

        asked = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
        if not asked:
            raise RecipeError("--tasks names no task", fix="--tasks arc_easy,gsm8k")
        by_file = [name for name in asked if name.endswith(ENDINGS)]
        with _quiet():
            # to look through the files of all of its tasks takes seconds
            loader = TaskManager(include_defaults=len(by_file) < len(asked))
        _require_known([name for name in asked if name not in by_file], by_file, loader.all_tasks)
        found = HarnessTasks(asked, loader)
        for name in asked:
            _read(loader, name)
        return found


def ask(
    tasks: HarnessTasks,
    model: nn.Module,
    tokenizer: Any,
    *,
    auto_class: str,
    batch_size: int,
    chat: bool,
    template_arguments: Mapping[str, Any],
    say: Callable[[str], None] = lambda line: None,
) -> list[HarnessScore]:
    """What the harness makes of a model as it stands, in the order of its tasks.

    `chat`: prompts go through the chat template, few-shot examples as turns before. Raises `RecipeError` for models that
    it cannot ask.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    if auto_class not in WRITING:
        raise RecipeError(
            f"the model is a {type(model).__name__}, which lm-evaluation-harness has no questions for",
            fix=f"it asks models that write: {', '.join(WRITING)}",
        )
    with _quiet(say), _tied_already(model):
        asked = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            chat_template_args=dict(template_arguments),
        )
        found = simple_evaluate(
            asked, tasks=list(tasks.names), task_manager=tasks.loader, log_samples=False, apply_chat_template=chat
        )
    return list(_scores(found))


def _require_known(names: Sequence[str], by_file: Sequence[str], known: Sequence[str]) -> None:
    missing = [name for name in by_file if not Path(name).is_file()]
    if missing:
        raise RecipeError(f"there is no file {missing[0]}", where="--tasks", fix="name the YAML file of a task")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise RecipeError(f"lm-evaluation-harness knows no task {name!r}", where="--tasks", fix=hint)


def _read(loader: Any, name: str) -> None:
    """Reads a task's rows, so that what is missing is told before a model is loaded."""
    try:
        with _quiet():
            loader.load([name])
    except (ConnectionError, OfflineModeIsEnabled) as error:
        raise HubError(
            f"the rows of {name} are not in the local cache, and the Hub cannot be reached",
            where="--tasks",
            fix="connect once, or name a YAML file whose rows are here (`dataset_path: json`)",
        ) from error
    except Exception as error:
        # of many kinds: of YAML, of the library for data, of code in the task itself
        what = next(iter(str(error).splitlines()), "")[:300]
        raise DataError(
            f"lm-evaluation-harness cannot read the task: {type(error).__name__}: {what}",
            where=name,
            fix="check the file; its `data_files` are looked for from the working directory",
        ) from error


def _scores(found: Mapping[str, Any]) -> Iterator[HarnessScore]:
    """From the harness's document: `"acc,none": 0.5, "acc_stderr,none": 0.01` in `results` of a task or a group."""
    for task, numbers in found["results"].items():
        better = found.get("higher_is_better", {}).get(task, {})
        rows = found.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in numbers.items():
            metric, comma, kept = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = numbers.get(f"{metric}_stderr,{kept}")
            number = float(error) if isinstance(error, (int, float)) else None
            yield HarnessScore(task, metric, kept, float(value), number, better.get(metric), rows)


@contextlib.contextmanager
def _tied_already(model: Any) -> Iterator[None]:
    """The harness ties the weights of whatever it is given; in a model with an adapter that could undo what was trained."""
    model.tie_weights = lambda *arguments, **named: None
    try:
        yield
    finally:
        del model.tie_weights


class _Bars(io.TextIOBase):
    """Takes what progress bars write, and tells the newest now and then."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._told = say, time.monotonic()

    def write(self, text: str) -> int:
        """Length of the text, whatever becomes of it."""
        shown = text.strip()
        if shown and time.monotonic() - self._told > PROGRESS_SECONDS:
            self._told = time.monotonic()
            self._say(shown)
        return len(text)


@contextlib.contextmanager
def _quiet(say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Without the harness's own lines on what it does by default, and its bars no more than lines of `say`.

    It also prints (`bootstrapping for stddev`), where a document of ours is to stand alone.
    """
    logger = logging.getLogger(PACKAGE)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        bars = _Bars(say)
        with contextlib.redirect_stderr(bars), contextlib.redirect_stdout(bars):
            yield
    finally:
        logger.setLevel(level)
