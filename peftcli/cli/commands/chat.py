"""peft chat"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Model, Quiet, RunAdapterOrModel, Set, say, show

ENDS = ("", "/exit", "/quit")


def command(
    path: RunAdapterOrModel,
    base: Annotated[bool, typer.Option("--base", help="Let the base model answer as well.")] = False,
    model: Model = None,
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """A conversation with the tuned model; an empty line, /exit or end of input ends it.

    Example:  peft chat runs/first --set generation.max_new_tokens=100
    """
    from peftcli.jobs.generate import chat_note, chat_turns
    from peftcli.jobs.opening import writing_of
    from peftcli.jobs.whole_models import open_to_answer

    opened = open_to_answer(path, base=model, with_base=base)
    writing = writing_of(opened.location, overrides or ())
    for warning in writing.warnings:
        say(f"warning: {warning}")
    if (note := chat_note(opened)) is not None:
        say(f"note: {note}", quiet=quiet)
    plain = _Writer("base>  ", silent=as_json)
    tuned = _Writer("tuned> " if opened.has_base else "model> ", silent=as_json, after=plain)
    turns = []
    written_base = plain.write if base else None
    for turn in chat_turns(
        opened, _messages(), writing.config, write=tuned.write, write_base=written_base, seed=writing.seed
    ):
        answers = {"answer": turn.reply.text} | ({} if turn.base is None else {"base_answer": turn.base.text})
        turns.append({"message": turn.conversation.messages[-2]["content"], **answers})
        tuned.end()
    if as_json:
        show({"turns": turns}, "", as_json=True)


def _messages() -> Iterator[str]:
    interactive = sys.stdin.isatty()
    if interactive:
        print("an empty line or /exit ends the conversation", file=sys.stderr)
    while True:
        if interactive:
            print("you>   ", end="", file=sys.stderr, flush=True)
        # the end of input reads as an empty line
        line = sys.stdin.readline()
        if line.strip() in ENDS:
            return
        yield line.rstrip("\n")


class _Writer:
    """Writes the pieces of an answer after a mark that says whose it is; silent where all is printed at the end."""

    def __init__(self, mark: str, *, silent: bool, after: _Writer | None = None) -> None:
        self.mark = mark
        self.silent = silent
        self.after = after
        self.is_open = False

    def write(self, piece: str) -> None:
        """Writes a piece as it comes."""
        if self.silent:
            return
        if not self.is_open:
            if self.after is not None:
                # the base answers first; its line ends where the tuned model's begins
                self.after.end()
            print(self.mark, end="")
            self.is_open = True
        print(piece, end="", flush=True)

    def end(self) -> None:
        """Ends the line; the next piece begins a new answer."""
        if self.is_open:
            print(flush=True)
        self.is_open = False
