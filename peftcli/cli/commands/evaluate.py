"""peft evaluate"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Model, Quiet, RunAdapterOrModel, Set, say, show


def command(
    path: RunAdapterOrModel,
    recipe: Annotated[Path | None, typer.Argument(readable=False, help="Another recipe's evaluation data.")] = None,
    model: Model = None,
    overrides: Set = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", metavar="NAME,...", help="Tasks of lm-evaluation-harness instead.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Metrics of base and tuned model on the recipe's (or another recipe's) evaluation data.

    Of a whole model (merged, or as published): its own, and those of the base that it was merged from or of --model.

    `--tasks arc_easy,gsm8k`, names or YAML files of tasks: base and tuned model by lm-evaluation-harness, kept in the
    run's harness.json.

    Example:  peft evaluate runs/first
    """
    if tasks is not None:
        idle = [*([] if recipe is None else [str(recipe)]), *(f"--set {text}" for text in overrides or ())]
        _by_harness(path, tasks, model, idle, as_json=as_json, quiet=quiet)
        return
    from peftcli.jobs.evaluate import evaluate_adapter, scores_text

    scores = evaluate_adapter(path, recipe, base=model, overrides=overrides or (), say=say)
    show(scores.to_dict(), scores_text(scores), as_json=as_json)


def _by_harness(path: Path, tasks: str, model: str | None, idle: list[str], *, as_json: bool, quiet: bool) -> None:
    from peftcli.errors import RecipeError
    from peftcli.jobs.harness import evaluate_by_harness, harness_text

    if idle:
        raise RecipeError(f"{idle[0]} has no effect with --tasks", fix="a task brings its own rows and settings")
    report = evaluate_by_harness(path, tasks.split(","), base=model, say=partial(say, quiet=quiet))
    show(report.to_dict(), harness_text(report), as_json=as_json)
