"""peft compare"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Quiet, RecipePath, Set, say, show


def command(
    recipe: RecipePath,
    methods: Annotated[
        str | None, typer.Option("--methods", metavar="A,B,...", help="Methods to compare (default: the recipe's).")
    ] = None,
    vary: Annotated[
        list[str] | None, typer.Option("--vary", metavar="KEY=A,B", help="Values of a recipe key (repeatable).")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each.")] = 1,
    budget: Annotated[str | None, typer.Option("--budget", help="For each run: 200steps, 1Mtokens or 10min.")] = None,
    tune: Annotated[
        int | None,
        typer.Option("--tune", min=2, metavar="N", help="First choose each one's learning rate among N."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Members at a time (default: one for each GPU, one on a CPU).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder (default: runs/NAME-compare).", show_default=False)
    ] = None,
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The same data and budget for several methods or settings: quality, memory, time, size.

    Example:  peft compare quickstart.yaml --methods lora,ia3 --budget 20steps
    """
    from peftcli.compare.job import compare, comparison_text

    found = compare(
        recipe, methods=[name.strip() for name in methods.split(",")] if methods else (), vary=vary or (), seeds=seeds,
        budget=budget, candidates=tune or 0, jobs=jobs, overrides=overrides or (), output=output, quiet=quiet,
        say=lambda line: say(line, quiet=quiet),
    )  # fmt: skip
    show(found.document, comparison_text(found), as_json=as_json)
