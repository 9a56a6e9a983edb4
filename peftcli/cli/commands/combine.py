"""peft combine"""

from __future__ import annotations

from typing import Annotated

import typer

from peftcli.cli.later import not_yet


def command(arguments: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
    """Not supported yet."""
    not_yet("peft combine")
