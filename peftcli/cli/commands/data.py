"""peft data"""

from __future__ import annotations

from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Quiet, RecipePath, Set, show


def command(
    recipe: RecipePath,
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many rows to show.")] = 3,
    ids: Annotated[bool, typer.Option("--ids", help="Show the token ids of each row too.")] = False,
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The very token ids and loss mask that training will see, coloured; then the data doctor's findings.

    Example:  peft data quickstart.yaml --rows 5
    """
    from peftcli.recipe import load_recipe

    # a bad recipe is told at once, before torch is imported
    load_recipe(recipe, overrides or ())
    from peftcli.jobs.data import data_document, data_text, look_at_data

    looked = look_at_data(recipe, overrides or (), rows=rows)
    show(data_document(looked), data_text(looked, ids=ids), as_json=as_json, coloured=True)
