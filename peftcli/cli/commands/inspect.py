"""peft inspect"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Model, Quiet, show


def command(
    path: Annotated[Path, typer.Argument(readable=False, help="An adapter, run or model folder.")],
    model: Model = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """What an adapter, run or model folder is: method, base, shapes, update norms, sizes.

    Example:  peft inspect runs/first
    """
    from peftcli.jobs.inspection import inspect_path, inspection_text

    found = inspect_path(path, base=model)
    show(found.to_dict(), inspection_text(found), as_json=as_json)
