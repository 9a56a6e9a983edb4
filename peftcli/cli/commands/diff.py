"""peft diff"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.later import not_yet
from peftcli.cli.output import AsJson, Quiet


def command(
    first: Annotated[Path, typer.Argument(metavar="A", help="A run or adapter folder.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.", show_default=False)],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Two runs or adapters: recipe, lock, data, metrics, per-layer updates. Not supported yet.

    Example:  peft diff runs/first runs/second
    """
    not_yet("peft diff")
