"""Recipes: what a user wishes, read from a file, checked whole, with the origin of every value.

`schema` composes the sections, whose classes lie in the rooms that they configure: a new key is a field there, with a
docstring under it, and is documented, checked and explained by that. `layers` merges files and overrides, `checking` tells
every fault at once, `rules` what holds between keys, `explaining` what `peft explain` and `peft methods` print.
"""

from peftcli.recipe.chat_template import check_chat_template, recipe_template
from peftcli.recipe.expectations import Gate, parse_gate
from peftcli.recipe.loading import LoadedRecipe, generation_from, load_recipe
from peftcli.recipe.pairing import check_pairing
from peftcli.recipe.paths import is_path
from peftcli.recipe.resolved import flat_recipe, resolved_document, resolved_yaml
from peftcli.recipe.schema import Recipe

__all__ = [
    "Gate", "LoadedRecipe", "Recipe", "check_chat_template", "check_pairing", "flat_recipe", "generation_from",
    "is_path", "load_recipe", "parse_gate", "recipe_template", "resolved_document", "resolved_yaml",
]  # fmt: skip
