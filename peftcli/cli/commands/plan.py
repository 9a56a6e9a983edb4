"""peft plan"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Set, show


def command(
    recipe: Annotated[Path, typer.Argument(help="The recipe file.")],
    device_memory: Annotated[
        str | None, typer.Option("--device-memory", help="Plan for this much, e.g. 24GiB.")
    ] = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """What would happen: rows, tokens, steps, exact parameter counts, memory by part. Loads no weights.

    Example:  peft plan recipe.yaml --device-memory 24GiB
    """
    from peftcli.jobs.sizes import parse_size
    from peftcli.plan import make_plan
    from peftcli.plan_text import plan_text
    from peftcli.recipe import load_recipe

    memory = parse_size(device_memory, "--device-memory 24GiB") if device_memory else None
    plan = make_plan(load_recipe(recipe, overrides or ()), device_memory=memory)
    show(plan.to_dict(), plan_text(plan), as_json=as_json)
