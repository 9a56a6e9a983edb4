"""What commands print: one JSON document on stdout, or text; progress and warnings always on stderr."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from peftcli import files
from peftcli.errors import PeftcliError, exit_code_of
from peftcli.redaction import redacted, redacted_values
from peftcli.streams import painting, tell

# `readable=False`: what may not be read is told by whoever reads it, with a remedy
RecipePath = Annotated[
    Path, typer.Argument(readable=False, metavar="RECIPE", help="The recipe file.", show_default=False)
]
"""The argument of commands that read a recipe."""
RunOrAdapter = Annotated[
    Path, typer.Argument(readable=False, metavar="RUN_OR_ADAPTER", help="A run or adapter folder.", show_default=False)
]
"""The argument of commands that need an adapter."""
RunAdapterOrModel = Annotated[
    Path,
    typer.Argument(
        readable=False, metavar="RUN_OR_ADAPTER", help="A run, adapter or whole model folder.", show_default=False
    ),
]
"""The argument of commands that also take a model without an adapter."""
AnsweringPaths = Annotated[
    list[Path],
    typer.Argument(
        readable=False,
        metavar="RUN_OR_ADAPTER...",
        help="A run, adapter or whole model folder; several adapters of one base answer side by side.",
        show_default=False,
    ),
]
"""The argument of commands that answer."""
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
"""The switch to machine-readable output."""
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
"""The switch that leaves out progress, never results or warnings."""
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, e.g. method.r=16 (repeatable)."),
]
"""Overrides of recipe keys, in the order given; None: none."""
Model = Annotated[str | None, typer.Option("--model", metavar="BASE", help="Where the base is (default: as recorded).")]
"""Another place of the base than the one that was recorded."""
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Not supported yet.", hidden=True)]
"""Refused with a reason wherever it is given, so that nobody believes it had an effect."""


_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")


def show(document: Any, text: str, *, as_json: bool, coloured: bool = False) -> None:
    """Prints the document with --json, else the text; `coloured` where it holds colours, and nothing foreign unseen."""
    if as_json:
        print(files.to_json(redacted_values(document)).rstrip("\n"))
    elif coloured:
        print(_redacted_between_colours(text), file=painting(sys.stdout))
    else:
        print(redacted(text))


def _redacted_between_colours(text: str) -> str:
    """A colour ends in a letter: with one right before it, a credential would not be seen to begin."""
    return "".join(part if _COLOUR.fullmatch(part) else redacted(part) for part in _COLOUR.split(text))


def conclude(document: Any, text: str, error: PeftcliError | None, *, as_json: bool, coloured: bool = False) -> None:
    """Shows the result of a check, then fails by `error`; with --json the document alone says why."""
    show(document, text, as_json=as_json, coloured=coloured)
    if error is None:
        return
    if as_json:
        # nothing more on stdout: a second document for the error would make it no JSON
        raise typer.Exit(exit_code_of(error))
    raise error


def shown_path(path: Path) -> str:
    """A path as one would type it here: relative where it lies below the working directory."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


def say(line: str, *, quiet: bool = False) -> None:
    """A line of progress on stderr."""
    if not quiet:
        tell(redacted(line))
