"""peft chat"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.labelled import Labelled
from peftcli.cli.output import AnsweringPaths, AsJson, Model, Quiet, Set, say, show

ENDS = ("", "/exit", "/quit")


def command(
    paths: AnsweringPaths,
    base: Annotated[bool, typer.Option("--base", help="Let the base model answer as well.")] = False,
    model: Model = None,
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """A conversation with the tuned model, or with several side by side; an empty line, /exit or end of input ends it.

    Example:  peft chat runs/first --set generation.max_new_tokens=100
    """
    if len(paths) > 1:
        _with_several(paths, model, overrides or (), with_base=base, quiet=quiet, as_json=as_json)
    else:
        _with_one(paths[0], model, overrides or (), with_base=base, quiet=quiet, as_json=as_json)


def _with_one(
    path: Path, model: str | None, overrides: Sequence[str], *, with_base: bool, quiet: bool, as_json: bool
) -> None:
    from peftcli.jobs.generate import chat_note, chat_turns
    from peftcli.jobs.opening import writing_of
    from peftcli.jobs.whole_models import open_to_answer

    opened = open_to_answer(path, base=model, with_base=with_base)
    writing = writing_of(opened.location, overrides)
    for warning in writing.warnings:
        say(f"warning: {warning}")
    if (note := chat_note(opened.location)) is not None:
        say(f"note: {note}", quiet=quiet)
    marks = {"base": "base>  ", "tuned": "tuned> " if opened.has_base else "model> "}
    screen = Labelled(marks, silent=as_json)
    turns = []
    written_base = (lambda piece: screen.write("base", piece)) if with_base else None
    for turn in chat_turns(
        opened,
        _messages(),
        writing.config,
        write=lambda piece: screen.write("tuned", piece),
        write_base=written_base,
        seed=writing.seed,
    ):
        answers = {"answer": turn.reply.text} | ({} if turn.base is None else {"base_answer": turn.base.text})
        turns.append({"message": turn.conversation.messages[-2]["content"], **answers})
        screen.end()
    if as_json:
        show({"turns": turns}, "", as_json=True)


def _with_several(
    paths: list[Path], model: str | None, overrides: Sequence[str], *, with_base: bool, quiet: bool, as_json: bool
) -> None:
    from peftcli.jobs.side_by_side import BASE, SideBySide, side_turns

    side = SideBySide(paths, base=model, overrides=overrides)
    for warning in side.warnings:
        say(f"warning: {warning}")
    for name, note in side.chat_notes.items():
        say(f"note: {name}: {note}", quiet=quiet)
    labels = [*([BASE] if with_base else []), *side.paths]
    width = max(map(len, labels)) + 2
    screen = Labelled({label: f"{label}>".ljust(width) for label in labels}, silent=as_json)
    turns = []
    for turn in side_turns(side, _messages(), screen.write, with_base=with_base):
        turns.append(turn.to_dict())
        screen.end()
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
