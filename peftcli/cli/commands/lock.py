"""peft lock"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Quiet, Set, show


def command(
    path: Annotated[
        Path, typer.Argument(readable=False, metavar="RUN_OR_RECIPE", help="A run, or a recipe.", show_default=False)
    ],
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the lock beside the recipe: hashes of all that a run takes in; from a run, also the results to expect.

    Example:  peft train quickstart.yaml --output runs/first && peft lock runs/first
    """
    from peftcli.runs.locking import lock_path_of, lock_text

    locked = lock_path_of(path, overrides or ())
    show(locked.to_dict(), lock_text(locked), as_json=as_json)
