"""peft evaluate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Model, Quiet, RunAdapterOrModel, Set, say, show


def command(
    path: RunAdapterOrModel,
    recipe: Annotated[Path | None, typer.Argument(readable=False, help="Another recipe's evaluation data.")] = None,
    model: Model = None,
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Metrics of base and tuned model on the recipe's (or another recipe's) evaluation data.

    Of a whole model (merged, or as published): its own, and those of the base that it was merged from or of --model.

    Example:  peft evaluate runs/first
    """
    from peftcli.jobs.evaluate import evaluate_adapter, scores_text

    scores = evaluate_adapter(path, recipe, base=model, overrides=overrides or (), say=say)
    show(scores.to_dict(), scores_text(scores), as_json=as_json)
