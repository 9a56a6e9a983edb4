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
    device: Annotated[str | None, typer.Option("--device", help="Plan for a card by its name, e.g. rtx-4090.")] = None,
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """What would happen: rows, tokens, steps, exact parameter counts, memory by part. Loads no weights.

    With --device-memory or --device, exit 9 where the estimate does not fit, with the cheapest changes that would.

    Example:  peft plan quickstart.yaml --device-memory 24GiB
    """
    from peftcli.errors import RecipeError
    from peftcli.recipe import load_recipe

    # a bad recipe is told at once, before torch is imported
    loaded = load_recipe(recipe, overrides or ())
    from peftcli.planning.cards import card_bytes
    from peftcli.planning.plan import make_plan, unfit
    from peftcli.planning.sizes import parse_size
    from peftcli.planning.text import plan_text

    if device_memory and device:
        raise RecipeError("--device and --device-memory both say how much memory there is", fix="give one of them")
    memory = parse_size(device_memory, "--device-memory 24GiB") if device_memory else None
    plan = make_plan(loaded, device_memory=card_bytes(device) if device else memory)
    error = unfit(plan)
    conclude(plan.to_dict(), plan_text(plan), error, as_json=as_json)
