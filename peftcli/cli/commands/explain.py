"""peft explain"""

from __future__ import annotations

from typing import Annotated

import typer

from peftcli.cli import completion
from peftcli.cli.output import AsJson, Quiet, show


def command(
    key: Annotated[
        str,
        typer.Argument(
            help="A recipe key (training.learning_rate) or an exit code (4).", autocompletion=completion.topics
        ),
    ],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Explain any recipe key or exit code, offline.

    Example:  peft explain training.learning_rate
    """
    from peftcli.recipe.explaining import explain

    found = explain(key)
    show(found, "\n".join(found["lines"]), as_json=as_json)
