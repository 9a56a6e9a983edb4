"""peft export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Model, Quiet, RunAdapterOrModel, say, show


def command(
    path: RunAdapterOrModel,
    to: Annotated[str, typer.Option("--to", help="peft, adapterhub, gguf, ollama or mlx.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write; must not exist.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="The whole model with the adapter baked in (gguf, ollama).")
    ] = False,
    kind: Annotated[
        str | None, typer.Option("--type", help="f32, f16, bf16 or q8_0 (default: adapter f32, model as the base).")
    ] = None,
    model: Model = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The adapter, or the merged model, in another tool's format, tried by that tool where it is installed.

    Example:  peft export runs/first --to peft --output exported
    """
    from peftcli.exporting.export import export_adapter, export_text

    report = export_adapter(
        path, to=to, output=output, base=model, merged=merged, kind=kind, say=lambda line: say(line, quiet=quiet)
    )
    show(report.to_dict(), export_text(report), as_json=as_json)
