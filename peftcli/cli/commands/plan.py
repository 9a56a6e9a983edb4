"""peft plan"""

from __future__ import annotations

from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Quiet, RecipePath, Set, conclude


def command(
    recipe: RecipePath,
    device_memory: Annotated[
        str | None, typer.Option("--device-memory", help="Plan for this much, e.g. 24GiB.")
    ] = None,
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """What would happen: rows, tokens, steps, exact parameter counts, memory by part. Loads no weights.

    With --device-memory, exit 9 where the estimate does not fit.

    Example:  peft plan quickstart.yaml --device-memory 24GiB
    """
    from peftcli.recipe import load_recipe

    # a bad recipe is told at once, before torch is imported
    loaded = load_recipe(recipe, overrides or ())
    from peftcli.planning.plan import make_plan, unfit
    from peftcli.planning.sizes import parse_size
    from peftcli.planning.text import plan_text

    memory = parse_size(device_memory, "--device-memory 24GiB") if device_memory else None
    plan = make_plan(loaded, device_memory=memory)
    checkpointing = loaded.recipe.training.gradient_checkpointing is True
    error = unfit(plan, memory, checkpointing=checkpointing)
    conclude(plan.to_dict(), plan_text(plan), error, as_json=as_json)
