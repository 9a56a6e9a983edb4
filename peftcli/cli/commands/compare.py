"""peft compare"""

from __future__ import annotations

from typing import Annotated

import typer

from peftcli.cli.later import not_yet
from peftcli.cli.output import AsJson, Quiet, RecipePath, Set


def command(
    recipe: RecipePath,
    methods: Annotated[str, typer.Option("--methods", metavar="A,B,...", help="Methods to compare.")],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each method.")] = 1,
    budget: Annotated[str | None, typer.Option("--budget", help="For each run: 200steps, 10min or 1Mtokens.")] = None,
    tune: Annotated[int, typer.Option("--tune", min=0, help="Trials of the learning rate for each method.")] = 0,
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The same data and budget across methods: quality, memory, time, size. Not supported yet.

    Example:  peft compare quickstart.yaml --methods lora,bottleneck --budget 200steps
    """
    not_yet("peft compare")
