"""peft init"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from peftcli.cli import completion
from peftcli.cli.output import AsJson, Quiet, show

TOY = "builtin:tiny"


def command(
    template: Annotated[
        str | None, typer.Argument(help="Which starter; --list shows them.", autocompletion=completion.starters)
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Your own rows; format and lengths are detected.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="BASE", help="Your base: Hub id or folder.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="File to write (default: ./TEMPLATE.yaml).")] = None,
    list_them: Annotated[bool, typer.Option("--list", help="List the starters.")] = False,
    ci: Annotated[str | None, typer.Option("--ci", help="Write a CI job instead: github or gitlab.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a starter recipe of at most 8 lines that trains as it stands, on data that ships with the package.

    With --data the recipe is for your own rows: their format is recognised, `max_length` set from their lengths.

    Example:  peft init quickstart && peft train quickstart.yaml
    """
    from peftcli.cli.starters import starter_named, starter_summaries, write_ci_job, write_starter
    from peftcli.errors import RecipeError

    if list_them:
        summaries = starter_summaries()
        width = max(map(len, summaries))
        text = "\n".join(f"{name:<{width}}  {summary}" for name, summary in summaries.items())
        show({"templates": summaries}, text, as_json=as_json)
        return
    if ci is not None and (data is not None or model is not None):
        raise RecipeError("--data and --model go with a starter", fix="leave them out with --ci")
    told = ""
    if ci is not None:
        path = write_ci_job(ci, output, [Path(f"{template}.yaml")] if template is not None else [])
        follow = f"next: commit {path}; peft train RECIPE --output RUN && peft lock RUN gives it something to reproduce"
    else:
        name = starter_named(template or ("quickstart" if data is None else "chat"))
        section, told = _own_rows(data, model or TOY, output, name) if data is not None else (None, "")
        path = write_starter(name, output, model=model, data=section)
        if data is not None and model is None:
            told += f"model: {TOY} is a toy to try with; set `model` (or --model) for real use\n"
        follow = f"next: peft train {path}"
    show({"written": str(path)}, f"{told}wrote {path}\n{follow}", as_json=as_json)


def _own_rows(data: Path, base: str, output: Path | None, starter: str) -> tuple[dict[str, Any], str]:
    """The `data` section for somebody's file, and what was found in it."""
    from peftcli.cli.starters import starter_tasks
    from peftcli.jobs.starting import look_at

    found = look_at(data, base, starter, starter_tasks())
    # a path in a recipe is relative to the recipe
    folder = output.parent if output is not None else Path()
    name = os.path.relpath(data, folder) if not data.is_absolute() else str(data)
    # a bare name would be taken for a dataset on the Hub once the file is moved away
    train = name if os.path.dirname(name) else f"./{name}"
    how = "tokens" if found.measured else "tokens, estimated from characters"
    told = (
        f"data: {found.format} ({found.why}); {found.rows:,} rows looked at, 99 of 100 within {found.max_length:,} {how};"
        f" {found.held_out}\n"
    )
    named = {"columns": dict(found.columns)} if found.columns else {}
    return {"train": train, "format": found.format, **named, "max_length": found.max_length}, told
