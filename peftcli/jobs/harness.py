"""`peft evaluate RUN_OR_ADAPTER --tasks a,b`: base and tuned model by lm-evaluation-harness, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from peftcli import files
from peftcli.data.tokens import template_kwargs
from peftcli.evaluation.harness import HarnessScore, HarnessTasks, ask, harness_version
from peftcli.evaluation.memory import memory_errors
from peftcli.jobs.opening import OpenModel
from peftcli.jobs.whole_models import open_to_score
from peftcli.reports.tables import text_table
from peftcli.runs.own_files import HARNESS_NAME
from peftcli.runs.writing_notes import CHAT, read_notes

BATCH_SIZE = 16
"""Rows that the harness asks at once."""


@dataclass(frozen=True)
class HarnessReport:
    """Scores of both models on the same tasks; the base is None for a whole model without one."""

    tasks: tuple[str, ...]
    base: list[HarnessScore] | None
    tuned: list[HarnessScore]
    chat: bool
    """Whether prompts went through the chat template."""
    version: str
    """Of the harness."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data: a number of a task in a line, the base's beside it."""
        base = {} if self.base is None else {score.key: score for score in self.base}
        lines = []
        for score in self.tuned:
            other = base.get(score.key)
            facts = asdict(score)
            value, error = facts.pop("value"), facts.pop("error")
            told = {
                "base": None if other is None else other.value,
                "base_error": None if other is None else other.error,
            }
            lines.append({**facts, **told, "tuned": value, "tuned_error": error})
        return {
            "harness": f"lm_eval {self.version}",
            "tasks": list(self.tasks),
            "chat_template": self.chat,
            "scores": lines,
        }


def evaluate_by_harness(
    path: str | Path,
    tasks: Sequence[str],
    *,
    base: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> HarnessReport:
    """Scores base and tuned model on tasks of lm-evaluation-harness, by name or as YAML files; kept beside a run's record.

    Prompts go through the chat template where the adapter was trained on chats. Raises `DeviceError` where the harness is
    not installed, `RecipeError` for tasks that it does not know and models that it cannot ask.
    """
    found = HarnessTasks.named(tasks)
    opened = open_to_score(path, base=base, say=say)
    chat = read_notes(opened.location.adapter).prompt == CHAT
    plain = None
    if opened.has_base:
        say("asking the base")
        with opened.as_base() as model:
            plain = _asked(found, opened, model, say, chat=chat)
    say("asking the tuned model")
    report = HarnessReport(
        found.names, plain, _asked(found, opened, opened.model, say, chat=chat), chat, harness_version()
    )
    if opened.location.run is not None:
        files.write_json(opened.location.run / HARNESS_NAME, report.to_dict())
    return report


def _asked(
    tasks: HarnessTasks, opened: OpenModel, model: nn.Module, say: Callable[[str], None], *, chat: bool
) -> list[HarnessScore]:
    with memory_errors("asking the model", "free memory on the device, or use a smaller base"):
        return ask(
            tasks,
            model,
            opened.tokenizer,
            auto_class=opened.auto_class,
            batch_size=BATCH_SIZE,
            chat=chat,
            template_arguments=template_kwargs(opened.tokenizer) if chat else {},
            say=say,
        )


def harness_text(report: HarnessReport) -> str:
    """What `peft evaluate --tasks` prints: a table of both models, and how prompts looked."""
    base = {} if report.base is None else {score.key: score for score in report.base}
    sides = ["base", "tuned", "change"] if report.base is not None else ["model"]
    rows = []
    for score in report.tuned:
        name = score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
        cells = [_cell(score)]
        if report.base is not None:
            other = base.get(score.key)
            change = "" if other is None else f"{score.value - other.value:+.4f}"
            cells = ["" if other is None else _cell(other), *cells, change]
        rows.append([score.task, name, *cells])
    prompts = "through the chat template, as in training" if report.chat else "as plain texts"
    return "\n".join(
        [
            text_table(["task", "metric", *sides], rows, numeric=range(2, 2 + len(sides))),
            f"by lm-evaluation-harness {report.version}; ± is the standard error; prompts {prompts}",
        ]
    )


def _cell(score: HarnessScore) -> str:
    return f"{score.value:.4f}" if score.error is None else f"{score.value:.4f} ± {score.error:.4f}"
