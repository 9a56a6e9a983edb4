"""peft export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.later import not_yet
from peftcli.cli.output import AsJson, Model, Quiet, RunOrAdapter


def command(
    path: RunOrAdapter,
    to: Annotated[str, typer.Option("--to", help="peft, adapterhub, gguf or ollama.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write; must not exist.")],
    model: Model = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The adapter, or the merged model, in another tool's format. Not supported yet.

    Example:  peft export runs/first --to gguf --output exported
    """
    not_yet("peft export")
