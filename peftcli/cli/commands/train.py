"""peft train"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Quiet, RecipePath, Set, TrustRemoteCode, conclude, say, show, shown_path
from peftcli.streams import wants_colour


def command(
    recipe: RecipePath,
    output: Annotated[Path | None, typer.Option("--output", help="Run folder (default: runs/<name>-001, ...).")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a run that the folder holds.")] = False,
    locked: Annotated[bool, typer.Option("--locked", help="Refuse to start when an input differs.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Every stage in a minute, on a tiny random model.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe: a run folder with adapter, metrics and report.

    Example:  peft train quickstart.yaml --output runs/first --set training.max_steps=100
    """
    from peftcli.cli.later import not_yet
    from peftcli.errors import RecipeError

    if trust_remote_code:
        not_yet("--trust-remote-code")
    if smoke and (locked or replace or output is not None):
        raise RecipeError("--smoke keeps nothing", fix="leave out --output, --replace and --locked")
    from peftcli.recipe import load_recipe

    # a bad recipe is told at once, before torch is imported
    load_recipe(recipe, overrides or ())
    if smoke:
        from peftcli.jobs.smoke import smoke_text, smoke_train

        report = smoke_train(recipe, overrides or (), say=lambda line: say(line, quiet=quiet))
        show(report.to_dict(), smoke_text(report), as_json=as_json)
        return
    from peftcli.launching.places import place
    from peftcli.reports.folder import read_run
    from peftcli.reports.terminal import run_ending
    from peftcli.run import train_into
    from peftcli.runs.gates import unmet

    record, folder = train_into(
        recipe, overrides=overrides or (), output=output, replace=replace, locked=locked, quiet=quiet
    )
    if not place().leads:
        # of the processes of an outside launcher one tells the outcome
        return
    document = {**record.to_dict(), "run": str(folder)}
    text = run_ending(read_run(folder), shown_path(folder), colour=wants_colour(sys.stdout))
    conclude(document, text, unmet(record, folder), as_json=as_json, coloured=True)
