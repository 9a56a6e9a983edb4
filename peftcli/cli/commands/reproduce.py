"""peft reproduce"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.later import not_yet
from peftcli.cli.output import AsJson, Quiet


def command(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_RECIPE", help="A run, or a recipe.", show_default=False)],
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Only the first steps.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Everything must be equal, bit for bit.")] = False,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the result as JUnit XML.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run again what a lock pins, and compare; exit 0 only when it reproduced. Not supported yet.

    Example:  peft reproduce quickstart.yaml --steps 20
    """
    not_yet("peft reproduce")
