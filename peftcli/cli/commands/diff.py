"""peft diff"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Model, Quiet, show


def command(
    first: Annotated[
        Path, typer.Argument(readable=False, metavar="A", help="A run or adapter folder.", show_default=False)
    ],
    second: Annotated[Path, typer.Argument(readable=False, metavar="B", help="Another one.", show_default=False)],
    model: Model = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Two runs or adapters: recipe, lock, data, metrics, and how alike their updates are, layer by layer.

    Example:  peft diff runs/quickstart-001 runs/first
    """
    from peftcli.jobs.diff import diff, diff_text

    report = diff(first, second, base=model)
    show(report.to_dict(), diff_text(report), as_json=as_json)
