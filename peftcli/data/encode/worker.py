"""A process that encodes chunks of conversations: frames of JSON and raw arrays on its standard streams.

The first frame holds the tokenizer and the settings, each later one a chunk; every chunk is answered by one frame.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO, Any

from peftcli.data.encode.base import EncodedRows, EncodeSettings, RowHit
from peftcli.data.rows import ChatRow
from peftcli.data.tokens import TokenizerFacts
from peftcli.data.wire import read_frame, write_frame
from peftcli.errors import ModelError


def chunk_frame(rows: Sequence[ChatRow], places: Sequence[str]) -> dict[str, Any]:
    """Rows, with their places for messages, as the head of a frame to a worker; `rows_of` reads it."""
    return {"rows": [[row.messages, row.weights, row.tools] for row in rows], "places": list(places)}


def rows_of(head: dict[str, Any]) -> list[ChatRow]:
    """The rows of a frame that `chunk_frame` made."""
    return [ChatRow(messages, weights, tools) for messages, weights, tools in head["rows"]]


def result_frame(encoded: EncodedRows) -> tuple[dict[str, Any], bytes]:
    """Head and body of a worker's answer: all numbers in the head, token ids as raw int32 in the body."""
    head = {
        "lengths": encoded.lengths,
        "run_lengths": encoded.run_lengths,
        "run_weights": encoded.run_weights,
        "kept": encoded.kept,
        "refused": list(encoded.refused.items()),
        "hits": [asdict(hit) for hit in encoded.hits],
    }
    return head, encoded.ids.tobytes()


def result_of(head: dict[str, Any], body: bytes) -> EncodedRows:
    """The encoded rows of an answer; the `ModelError` that the worker met is raised here."""
    if "error" in head:
        raise ModelError(head["error"], where=head["where"], fix=head["fix"])
    ids = array("i")
    ids.frombytes(body)
    return EncodedRows(
        ids,
        head["lengths"],
        head["run_lengths"],
        head["run_weights"],
        head["kept"],
        {row: (reason, fix) for row, (reason, fix) in head["refused"]},
        [RowHit(**hit) for hit in head["hits"]],
    )


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answers chunks until the requests end."""
    # here, for the parent reads this file too, for its frames
    from peftcli.data.encode.encoder import RowEncoder

    first = read_frame(requests)
    if first is None:
        return
    head, _ = first
    encoder = RowEncoder(TokenizerFacts(**head["tokenizer"]), EncodeSettings(**head["settings"]))
    while (frame := read_frame(requests)) is not None:
        request, _ = frame
        places = request["places"]
        try:
            write_frame(answers, *result_frame(encoder.encode(rows_of(request), places.__getitem__)))
        except ModelError as error:
            # a fault of the template goes back as an answer; the worker is good for other chunks
            write_frame(answers, {"error": error.message, "where": error.where, "fix": error.fix})


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
