"""llama.cpp in a process of its own: it reads a file and says which tokens it makes of texts and which it answers with.

A crash in it, or a model beyond memory, ends that process and not the export.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.bounded_process import start
from peftcli.errors import CheckFailed

PACKAGE = "xllamacpp"
SECONDS = 600
_CONTEXT_MARGIN = 8


@dataclass(frozen=True)
class Said:
    """What llama.cpp said: ids of each text, and the greedy continuation of each row of ids."""

    ids: list[list[int]]
    answers: list[list[int]]


def is_here() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def ask(
    model: Path, texts: Sequence[str], rows: Sequence[Sequence[int]], tokens: int, adapter: Path | None = None
) -> Said:
    """Raises `CheckFailed` where llama.cpp cannot read the file or ends without an answer."""
    process = start(__name__, "serve", str(model), None if adapter is None else str(adapter))
    request = json.dumps({"texts": list(texts), "rows": [list(row) for row in rows], "tokens": tokens}).encode("utf-8")
    try:
        output, _ = process.communicate(request, timeout=SECONDS)
        said = json.loads(output.decode("utf-8").rpartition("\n")[2])
    except Exception as error:
        process.kill()
        process.wait()
        raise CheckFailed(
            f"llama.cpp could not read what was written (exit code {process.returncode})", where=str(adapter or model)
        ) from error
    return Said(said["ids"], said["answers"])


def serve(model: str, adapter: str | None) -> None:
    """In the other process: answers the request on standard input with one line of JSON."""
    request = json.loads(sys.stdin.buffer.read())
    # what the library prints by itself is nobody's
    kept = os.dup(1)
    os.dup2(2, 1)
    server = _server(model, adapter, max(map(len, request["rows"]), default=0) + request["tokens"] + _CONTEXT_MARGIN)
    ids = [_post(server, "tokenize", {"content": text, "add_special": True})["tokens"] for text in request["texts"]]
    answers = []
    for row in request["rows"]:
        wanted = {
            "prompt": row, "n_predict": request["tokens"], "temperature": 0.0, "return_tokens": True,
            "cache_prompt": False, "ignore_eos": False,
        }  # fmt: skip
        answers.append(_post(server, "completion", wanted)["tokens"])
    os.write(kept, ("\n" + json.dumps({"ids": ids, "answers": answers})).encode("utf-8"))
    # the library's threads do not end by themselves
    os._exit(0)


def _server(model: str, adapter: str | None, context: int) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = context, 1, False, 0
    # as exact as it can: no half-precision cache
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = 0
    with contextlib.suppress(AttributeError):
        params.no_extra_bufts = True
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    return xllamacpp.Server(params)


def _post(server: Any, path: str, document: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{server.listening_address}/{path}",
        json.dumps(document).encode("utf-8"),
        {"Content-Type": "application/json"},
    )
    # never through a proxy: the server is in this very process
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=SECONDS) as response:
        found: dict[str, Any] = json.load(response)
    return found
