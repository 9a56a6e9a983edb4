"""peft convert"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Model, Quiet, show


def command(
    adapter: Annotated[
        Path, typer.Argument(readable=False, metavar="ADAPTER", help="An adapter folder.", show_default=False)
    ],
    to: Annotated[str, typer.Option("--to", help="lora or peft.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write; must not exist.")],
    r: Annotated[
        int | None, typer.Option("--r", min=1, help="Rank of the LoRA (default: error below 1 % in each layer).")
    ] = None,
    model: Model = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Any mergeable adapter as LoRA, with the stated error, or another tool's adapter (AdapterHub, MLX) in our format.

    Example:  peft convert runs/first/adapter --to lora --r 8 --output converted
    """
    from peftcli.jobs.convert import convert_adapter, convert_text

    report = convert_adapter(adapter, to=to, output=output, r=r, base=model)
    show(report.to_dict(), convert_text(report), as_json=as_json)
