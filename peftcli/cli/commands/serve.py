"""peft serve"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Model, Quiet, show


def command(
    runs: Annotated[
        list[Path], typer.Argument(readable=False, metavar="RUN...", help="Run or adapter folders of one base.")
    ],
    model: Model = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The exact command by which vLLM serves runs beside their base, after looking whether it can; it is printed, not run.

    Example:  peft serve runs/first
    """
    from peftcli.exporting.serving import serve_command, serve_text

    found = serve_command(runs, base=model)
    show(found.to_dict(), serve_text(found), as_json=as_json)
