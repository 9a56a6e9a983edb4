"""peft lock"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.later import not_yet
from peftcli.cli.output import AsJson, Quiet, Set


def command(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_RECIPE", help="A run, or a recipe.", show_default=False)],
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the lock beside the recipe; from a run, with its expected results. Not supported yet.

    Example:  peft lock runs/first
    """
    not_yet("peft lock")
