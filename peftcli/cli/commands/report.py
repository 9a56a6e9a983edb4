"""peft report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Quiet, show
from peftcli.errors import RecipeError


def command(
    runs: Annotated[
        list[Path], typer.Argument(readable=False, metavar="RUN...", help="One run, or several to compare.")
    ],
    output: Annotated[Path | None, typer.Option("--output", hidden=True)] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Render a run's report again, with a page for the model's users and its figures as SVG files; or a comparison of
    several runs (into compare.html and compare.md here).

    Example:  peft report runs/first
    """
    from peftcli.jobs.report import render_again, render_comparison

    if len(runs) == 1 and output is not None:
        raise RecipeError("--output is for a comparison of several runs", fix="leave it out: a report lies in its run")
    written = render_again(runs[0]) if len(runs) == 1 else render_comparison(runs, output or Path())
    show({"written": [str(path) for path in written]}, "\n".join(f"wrote {path}" for path in written), as_json=as_json)
