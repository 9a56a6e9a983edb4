"""peft chat"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import Model, Set


def command(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run or adapter folder.")],
    base: Annotated[bool, typer.Option("--base", help="Let the base model answer as well.")] = False,
    model: Model = None,
    overrides: Set = None,
) -> None:
    """A conversation with the tuned model; an empty line or end of input ends it.

    Example:  peft chat runs/support-001 --set generation.temperature=0.7
    """
    from peftcli.jobs.generate import chat_turns
    from peftcli.jobs.opening import generation_config, open_adapter

    opened = open_adapter(path, base=model)
    config = generation_config(opened.location, overrides or ())
    for _ in chat_turns(
        opened, _messages(), config, write=_writer("tuned> "), write_base=_writer("base>  ") if base else None
    ):
        print()


def _messages() -> Iterator[str]:
    interactive = sys.stdin.isatty()
    while True:
        if interactive:
            print("you>   ", end="", flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.rstrip("\n")


class _Writer:
    """Writes the pieces of an answer after a mark that says whose it is; a new turn begins a new line."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.open = False

    def __call__(self, piece: str) -> None:
        if not self.open:
            print(f"\n{self.mark}", end="")
            self.open = True
        print(piece, end="", flush=True)


def _writer(mark: str) -> _Writer:
    return _Writer(mark)
