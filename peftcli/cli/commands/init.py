"""peft init"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Quiet, show


def command(
    template: Annotated[str | None, typer.Argument(help="Which starter; --list shows them.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="File to write (default: ./TEMPLATE.yaml).")] = None,
    list_them: Annotated[bool, typer.Option("--list", help="List the starters.")] = False,
    ci: Annotated[str | None, typer.Option("--ci", help="Write a CI job instead: github or gitlab.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a starter recipe of at most 8 lines that trains as it stands, on data that ships with the package.

    Example:  peft init quickstart && peft train quickstart.yaml
    """
    from peftcli.cli.starters import starter_summaries, write_ci_job, write_starter

    if list_them:
        summaries = starter_summaries()
        width = max(map(len, summaries))
        text = "\n".join(f"{name:<{width}}  {summary}" for name, summary in summaries.items())
        show({"templates": summaries}, text, as_json=as_json)
        return
    path = write_ci_job(ci, output) if ci is not None else write_starter(template or "quickstart", output)
    follow = f"next: peft train {path}" if ci is None else f"next: commit {path}"
    show({"written": str(path)}, f"wrote {path}\n{follow}", as_json=as_json)
