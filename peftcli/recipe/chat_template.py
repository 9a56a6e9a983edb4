"""The chat template of a recipe, as far as it can be checked without the base."""

from __future__ import annotations

from pathlib import Path

from peftcli.data.chat_variables import check_variables
from peftcli.models.template_file import read_template_file
from peftcli.recipe.loading import LoadedRecipe


def recipe_template(loaded: LoadedRecipe) -> str | None:
    """Text of the recipe's chat template file, None where the tokenizer's own is used.

    Raises `ModelError` for a file that is missing or no template.
    """
    name = loaded.recipe.model.chat_template
    return None if name is None else read_template_file((loaded.folder / Path(name).expanduser()).resolve())


def check_chat_template(loaded: LoadedRecipe) -> None:
    """Checks a template file that the recipe names, and the variables that it sets against those that the file reads.

    Raises what `recipe_template` raises, and `RecipeError` for a variable that the template does not read.
    """
    source = recipe_template(loaded)
    if source is not None:
        check_variables(loaded.recipe.model.chat_template_kwargs, [source])
