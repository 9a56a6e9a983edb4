"""peft train"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Quiet, RecipePath, Set, TrustRemoteCode, show


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

    for given, name in ((locked, "--locked"), (smoke, "--smoke"), (trust_remote_code, "--trust-remote-code")):
        if given:
            not_yet(name)
    from peftcli.recipe import load_recipe

    # a bad recipe is told at once, before torch is imported
    load_recipe(recipe, overrides or ())
    from peftcli.reports.folder import read_run
    from peftcli.reports.terminal import run_summary
    from peftcli.run import train_into

    record, folder = train_into(recipe, overrides=overrides or (), output=output, replace=replace, quiet=quiet)
    show({**record.to_dict(), "run": str(folder)}, run_summary(read_run(folder)), as_json=as_json)
