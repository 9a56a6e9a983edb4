"""peft generate"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftcli.cli.labelled import Labelled
from peftcli.cli.output import AnsweringPaths, AsJson, Model, Quiet, Set, say, show

if TYPE_CHECKING:
    from peftcli.evaluation.config import GenerationConfig
    from peftcli.jobs.generate import Request


def command(
    paths: AnsweringPaths,
    prompt: Annotated[str | None, typer.Option("--prompt", help="One prompt.")] = None,
    input_file: Annotated[
        Path | None, typer.Option("--input", readable=False, help="JSONL with `prompt` or `messages`.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="JSONL to write, with --input.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Also give the base model's answer.")] = False,
    model: Model = None,
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Text from the tuned model, or from a whole one (merged, or as published); from several adapters side by side.

    Example:  peft generate runs/first --prompt "My parcel is late" --base
    """
    from peftcli.errors import RecipeError, StorageError
    from peftcli.jobs.generate import read_requests, text_request

    if (prompt is None) == (input_file is None):
        raise RecipeError("give either --prompt or --input", fix='for instance --prompt "Hello"')
    if output is not None and input_file is None:
        raise RecipeError("--output goes with --input", fix="with --prompt the answer is printed")
    # before the model is loaded, which takes long; `write_new` makes sure again
    if output is not None and os.path.lexists(output):
        raise StorageError(f"{output} exists", fix="name a new file, or remove this one")
    requests = [text_request(prompt)] if prompt is not None else read_requests(input_file or Path())
    wanted = _Wanted(requests, prompt is not None, base, model, tuple(overrides or ()), output, quiet, as_json)
    if len(paths) > 1:
        _side_by_side(paths, wanted)
    else:
        _alone(paths[0], wanted)


@dataclass(frozen=True)
class _Wanted:
    """What is asked, and where the answers go."""

    requests: list[Request]
    lone: bool
    """Whether it is one prompt of the command line, whose answer is written as it comes."""
    base: bool
    model: str | None
    overrides: tuple[str, ...]
    output: Path | None
    quiet: bool
    as_json: bool

    def streams(self, configs: Iterable[GenerationConfig]) -> bool:
        """A document, or several answers to a prompt, need the whole text."""
        return self.lone and not self.as_json and all(config.num_return_sequences == 1 for config in configs)


def _alone(path: Path, wanted: _Wanted) -> None:
    from peftcli.jobs.generate import answer_all, answers_text, cut_note, stream_answer
    from peftcli.jobs.opening import writing_of
    from peftcli.jobs.predict import gives_labels, predict_all, predictions_text
    from peftcli.jobs.vectors import embed_all, gives_vectors, vectors_text
    from peftcli.jobs.whole_models import open_to_answer

    opened = open_to_answer(path, base=wanted.model, with_base=wanted.base)
    if gives_labels(opened):
        predicted = predict_all(opened, wanted.requests, with_base=wanted.base)
        _put([each.to_dict() for each in predicted], predictions_text(predicted), wanted, "predictions")
        return
    if gives_vectors(opened):
        embedded = embed_all(opened, wanted.requests, with_base=wanted.base)
        _put([each.to_dict() for each in embedded], vectors_text(embedded), wanted, "embeddings")
        return
    writing = writing_of(opened.location, wanted.overrides)
    for warning in writing.warnings:
        say(f"warning: {warning}")
    # two answers side by side need the whole text
    if wanted.streams([writing.config]) and not wanted.base:
        stream_answer(
            opened,
            wanted.requests[0],
            writing.config,
            lambda piece: print(piece, end="", flush=True),
            seed=writing.seed,
        )
        print()
        return
    answers = answer_all(opened, wanted.requests, writing.config, with_base=wanted.base, seed=writing.seed)
    if (note := cut_note(answers, writing.config)) is not None:
        say(f"warning: {note}")
    _put([answer.to_dict() for answer in answers], answers_text(answers), wanted, "answers")


def _side_by_side(paths: list[Path], wanted: _Wanted) -> None:
    from peftcli.jobs.generate import cut_note
    from peftcli.jobs.side_by_side import BASE, SideBySide, answer_each, marked, side_text, stream_each

    side = SideBySide(paths, base=wanted.model, overrides=wanted.overrides)
    for warning in side.warnings:
        say(f"warning: {warning}")
    if wanted.streams([writing.config for writing in side.writings.values()]):
        labels = dict.fromkeys([*([BASE] if wanted.base else []), *side.paths])
        screen = Labelled({label: marked(label, labels) for label in labels})
        stream_each(side, wanted.requests[0], screen.write, with_base=wanted.base)
        screen.end()
        return
    answers = answer_each(side, wanted.requests, with_base=wanted.base)
    for name, writing in side.writings.items():
        if (note := cut_note([each.by_name[name] for each in answers], writing.config)) is not None:
            say(f"warning: {name}: {note}")
    _put([answer.to_dict() for answer in answers], side_text(answers), wanted, "answers")


def _put(documents: list[dict[str, Any]], text: str, wanted: _Wanted, what: str) -> None:
    """Into the file that is asked for, or on the screen. `what`: the documents' name."""
    from peftcli import files
    from peftcli.ownership import write_new

    if wanted.output is None:
        show({what: documents}, text, as_json=wanted.as_json)
        return
    write_new(wanted.output, "".join(files.json_line(document) for document in documents))
    say(f"wrote {len(documents)} {what} to {wanted.output}", quiet=wanted.quiet)
    if wanted.as_json:
        show({"written": str(wanted.output), "rows": len(documents)}, "", as_json=True)
