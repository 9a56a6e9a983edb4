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

    Example:  peft lock runs/quickstart-001
    """
    from peftcli.runs.locking import lock_text, write_lock_for

    written = write_lock_for(path, overrides or ())
    show(written.to_dict(), lock_text(written), as_json=as_json)
