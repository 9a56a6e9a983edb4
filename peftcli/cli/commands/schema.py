"""peft schema"""

from __future__ import annotations


def command() -> None:
    """JSON Schema of a recipe, for editors.

    Example:  peft schema > peft-recipe.schema.json
    """
    from peftcli import files
    from peftcli.recipe.json_schema import recipe_schema

    print(files.to_json(recipe_schema()), end="")
