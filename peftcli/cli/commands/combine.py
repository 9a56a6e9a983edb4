"""peft combine"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.later import not_yet
from peftcli.cli.output import AsJson, Quiet


def command(
    adapters: Annotated[
        list[Path], typer.Argument(readable=False, metavar="ADAPTER...", help="Adapter folders.", show_default=False)
    ],
    weights: Annotated[str, typer.Option("--weights", metavar="W,...", help="One weight for each adapter.")],
    how: Annotated[
        str,
        typer.Option("--how", help="linear, cat, svd, ties, dare_linear, dare_ties or magnitude_prune."),
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder to write; must not exist.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Several adapters into one. Not supported yet.

    Example:  peft combine one two --weights 0.5,0.5 --how ties --output both
    """
    not_yet("peft combine")
