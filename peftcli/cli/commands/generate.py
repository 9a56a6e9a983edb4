"""peft generate"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from peftcli.cli.output import AsJson, Model, Quiet, RunAdapterOrModel, Set, say, show


def command(
    path: RunAdapterOrModel,
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
    """Text from the tuned model, or from a whole one (merged, or as published).

    Example:  peft generate runs/first --prompt "My parcel is late" --base
    """
    from peftcli.errors import RecipeError, StorageError
    from peftcli.jobs.generate import answer_all, answers_text, cut_note, read_requests, stream_answer, text_request
    from peftcli.jobs.opening import writing_of
    from peftcli.jobs.predict import gives_labels, predict_all, predictions_text
    from peftcli.jobs.vectors import embed_all, gives_vectors, vectors_text
    from peftcli.jobs.whole_models import open_to_answer

    if (prompt is None) == (input_file is None):
        raise RecipeError("give either --prompt or --input", fix='for instance --prompt "Hello"')
    if output is not None and input_file is None:
        raise RecipeError("--output goes with --input", fix="with --prompt the answer is printed")
    # before the model is loaded, which takes long; `write_new` makes sure again
    if output is not None and os.path.lexists(output):
        raise StorageError(f"{output} exists", fix="name a new file, or remove this one")
    requests = [text_request(prompt)] if prompt is not None else read_requests(input_file or Path())
    opened = open_to_answer(path, base=model, with_base=base)
    if gives_labels(opened):
        predicted = predict_all(opened, requests, with_base=base)
        rows, text = [each.to_dict() for each in predicted], predictions_text(predicted)
        _put(rows, text, output, "predictions", quiet=quiet, as_json=as_json)
        return
    if gives_vectors(opened):
        embedded = embed_all(opened, requests, with_base=base)
        rows, text = [each.to_dict() for each in embedded], vectors_text(embedded)
        _put(rows, text, output, "embeddings", quiet=quiet, as_json=as_json)
        return
    writing = writing_of(opened.location, overrides or ())
    for warning in writing.warnings:
        say(f"warning: {warning}")
    # only a lone prompt is written as it comes: two answers side by side, or a document, need the whole text
    if prompt is not None and not base and not as_json and writing.config.num_return_sequences == 1:
        stream_answer(
            opened, requests[0], writing.config, lambda piece: print(piece, end="", flush=True), seed=writing.seed
        )
        print()
        return
    answers = answer_all(opened, requests, writing.config, with_base=base, seed=writing.seed)
    if (note := cut_note(answers, writing.config)) is not None:
        say(f"warning: {note}")
    documents = [answer.to_dict() for answer in answers]
    _put(documents, answers_text(answers), output, "answers", quiet=quiet, as_json=as_json)


def _put(
    documents: list[dict[str, Any]], text: str, output: Path | None, what: str, *, quiet: bool, as_json: bool
) -> None:
    """Into the file that is asked for, or on the screen. `what`: the documents' name."""
    from peftcli import files
    from peftcli.ownership import write_new

    if output is None:
        show({what: documents}, text, as_json=as_json)
        return
    write_new(output, "".join(files.json_line(document) for document in documents))
    say(f"wrote {len(documents)} {what} to {output}", quiet=quiet)
    if as_json:
        show({"written": str(output), "rows": len(documents)}, "", as_json=True)
