"""A recipe of the Hub under `extends`: `owner/name[@revision]`, read from the same cache as bases and adapters."""

from __future__ import annotations

import re
from pathlib import Path

from peftcli.errors import HubError, RecipeError
from peftcli.recipe.paths import is_path

RECIPE_NAME = "recipe.yaml"
"""What a recipe is called in a repository and in a run folder."""
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\S+)?")
_SUFFIXES = (".yaml", ".yml")


def names_hub_recipe(value: str, folder: Path) -> bool:
    """Whether `extends` names a repository of the Hub: none that lies beside the recipe in `folder`, nor any file."""
    return bool(_NAME.fullmatch(value)) and not value.lower().endswith(_SUFFIXES) and not is_path(value, folder)


def hub_recipe(value: str, where: str | None, *, fetch: bool) -> Path:
    """The file in the local cache. `fetch`: ask the Hub; else only the cache is looked at.

    Raises `HubError` where the Hub has no such repository or revision, or cannot be reached; `RecipeError` where the
    repository holds no recipe.
    """
    name, _, revision = value.partition("@")
    # imported here: a recipe that names none needs no library of the Hub
    from peftcli.models.hub import files_of, hub_errors

    try:
        with hub_errors(name, revision or None, key="extends"):
            folder = files_of(name, revision or None, [RECIPE_NAME], fetch=fetch)
    # the library's own check of names
    except ValueError as error:
        raise RecipeError(
            f"{value[:100]!r} is neither a file nor a name of the Hub", where=where, fix="extends: owner/name@revision"
        ) from error
    except HubError as error:
        fix = f"{error.faults[0].fix}; a file is named with its end, .yaml"
        raise HubError(error.message, where=where, fix=fix) from error
    if not (folder / RECIPE_NAME).is_file():
        raise RecipeError(
            f"{value} holds no {RECIPE_NAME}", where=where, fix="name a repository that `peft push` made of a run"
        )
    return folder / RECIPE_NAME
