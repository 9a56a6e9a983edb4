"""peft convert"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.later import not_yet
from peftcli.cli.output import AsJson, Quiet


def command(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapter folder.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="lora or peft.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write; must not exist.")],
    r: Annotated[int | None, typer.Option("--r", min=1, help="Rank of the LoRA.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Any mergeable adapter as LoRA, or a foreign one in our format. Not supported yet.

    Example:  peft convert runs/first/adapter --to lora --r 8 --output converted
    """
    not_yet("peft convert")
