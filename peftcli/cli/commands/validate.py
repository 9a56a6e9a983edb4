"""peft validate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Set, say, show


def command(
    recipe: Annotated[Path, typer.Argument(help="The recipe file.")],
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Check a recipe: schema and cross-field rules, all faults at once. Loads no model, reaches no network.

    Example:  peft validate recipe.yaml --set method.r=16
    """
    from peftcli.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    for warning in loaded.warnings:
        say(f"warning: {warning}")
    facts = {"valid": True, "recipe": str(recipe), "name": loaded.name, "method": loaded.recipe.method.name}
    show({**facts, "warnings": list(loaded.warnings)}, f"{recipe} is valid", as_json=as_json)
