"""peft schema"""

from __future__ import annotations

from peftcli.cli.output import AsJson, Quiet, show


def command(quiet: Quiet = False, as_json: AsJson = False) -> None:
    """JSON Schema of a recipe, for editors; it is always JSON.

    Example:  peft schema > peft-recipe.schema.json
    """
    from peftcli.recipe.json_schema import recipe_schema

    show(recipe_schema(), "", as_json=True)
