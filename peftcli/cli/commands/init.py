"""peft init"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli import completion
from peftcli.cli.output import AsJson, Quiet, show


def command(
    template: Annotated[
        str | None, typer.Argument(help="Which starter; --list shows them.", autocompletion=completion.starters)
    ] = None,
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
    if ci is not None:
        path = write_ci_job(ci, output, [Path(f"{template}.yaml")] if template is not None else [])
        follow = f"next: commit {path}; peft train RECIPE --output RUN && peft lock RUN gives it something to reproduce"
    else:
        path = write_starter(template or "quickstart", output)
        follow = f"next: peft train {path}"
    show({"written": str(path)}, f"wrote {path}\n{follow}", as_json=as_json)
