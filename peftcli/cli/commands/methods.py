"""peft methods"""

from __future__ import annotations

from typing import Annotated

import typer

from peftcli.cli import completion
from peftcli.cli.output import AsJson, Quiet, show


def command(
    name: Annotated[
        str | None, typer.Argument(help="One method, with its fields.", autocompletion=completion.methods)
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The methods, their fields, and what each works with.

    Example:  peft methods lora
    """
    from peftcli.recipe.telling_methods import method_document, method_text, methods_document, methods_text

    if name is None:
        show(methods_document(), methods_text(), as_json=as_json)
    else:
        show(method_document(name), method_text(name), as_json=as_json)
