"""The process in which chat templates run: what they may use of memory and time is bounded by the kernel.

A template is code of somebody else. Whatever it does in here, by loops, by recursion or by one call of C that works for
hours, ends at the bounds of this process: at its memory a `MemoryError`, at its time a signal, and where that is not
heard its death. It answers frames on its standard streams and imports neither torch nor a tokenizer.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peftcli import system
from peftcli.data.chat.answers import Hit
from peftcli.data.chat.borders import Borders
from peftcli.data.chat.limits import BEGUN, OUT_OF_MEMORY, TOO_DEEP, TemplateFailure, TemplateLimit, TemplateRefusal
from peftcli.data.chat.spans import Renderer, turn_end
from peftcli.data.chat.template import ChatTemplate
from peftcli.data.faults import RowFault
from peftcli.data.rows import ChatRow, Message
from peftcli.data.wire import read_frame, write_frame

Reply = dict[str, Any]
# a signal is heard between two steps of Python only: after this many times the allowed time the process ends
_PATIENCE = 1.5
_ANSWERS = 1
ROW_SECONDS = 20.0
"""Of computing, for all renderings of one row: a conversation of a thousand turns takes a few."""


class _LimitedTemplate:
    """A template each rendering of which may compute for so many seconds, and all of a row's together for more."""

    def __init__(self, template: ChatTemplate, seconds: float) -> None:
        self._template = template
        self._seconds = seconds
        self._row_ends = math.inf
        self.reads = template.reads

    @contextmanager
    def one_row(self) -> Iterator[None]:
        self._row_ends = time.process_time() + ROW_SECONDS
        try:
            yield
        finally:
            self._row_ends = math.inf

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        *,
        prompt: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        if time.process_time() > self._row_ends:
            # the prompt of each answer is rendered: work that grows with the square of the turns
            raise RowFault(
                f"the answers of this conversation take more than {ROW_SECONDS:g} seconds to find under the chat template",
                "shorter conversations, or `data.train_on: last-turn`",
            )
        with _limited(self._seconds):
            return self._template.render(messages, tools, prompt=prompt, extra=extra)


class _OpenTemplate:
    """A template with what renders rows under it."""

    def __init__(self, request: dict[str, Any], seconds: float) -> None:
        with _limited(seconds):
            self.template = _LimitedTemplate(ChatTemplate(request["source"], request["variables"]), seconds)
        self.borders = Borders(request["tokens"], request["stops"])
        self.renderer = Renderer(self.template, self.borders, request["train_on"], request["thoughts"])


class Server:
    """Answers requests. `seconds`: of computing that one rendering may take."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._opened: list[_OpenTemplate] = []

    def answer(self, request: dict[str, Any]) -> Reply:
        """The answer to one request, as plain JSON; what a template does wrong is in it."""
        if request["do"] == "open":
            return _guarded(lambda: self._open(request))
        opened = self._opened[request["template"]]
        if request["do"] == "rows":
            return {"rows": self._rows(opened, request["rows"])}
        if request["do"] == "turn end":
            return _guarded(lambda: {"text": turn_end(opened.template, opened.borders)})
        messages, tools, prompt = request["messages"], request["tools"], request["prompt"]
        return _guarded(lambda: {"text": opened.template.render(messages, tools, prompt=prompt)})

    def _open(self, request: dict[str, Any]) -> Reply:
        self._opened.append(_OpenTemplate(request, self._seconds))
        return {"template": len(self._opened) - 1, "reads": sorted(self._opened[-1].template.reads)}

    def _rows(self, opened: _OpenTemplate, rows: list[Any]) -> list[Reply]:
        """What becomes of each row, up to the first on which the template itself breaks."""
        answers = []
        for messages, weights, tools in rows:
            row = ChatRow(messages, weights, tools)
            # in front of the answer, so that whoever asks knows on which row this process died
            os.write(_ANSWERS, BEGUN)
            with opened.template.one_row():
                answers.append(_guarded(lambda row=row: _rendered(opened.renderer, row)))  # type: ignore[misc]
            if "failure" in answers[-1] or "limit" in answers[-1]:
                break
        return answers


def _guarded(work: Callable[[], Reply]) -> Reply:
    try:
        return work()
    except TemplateRefusal as refusal:
        return {"refusal": str(refusal)}
    except RowFault as fault:
        return {"fault": fault.message, "fix": fault.fix}
    except TemplateFailure as failure:
        # a thousand characters: a template may raise a message of any length
        return {"failure": failure.reason[:1000], "line": failure.line}
    except TemplateLimit as limit:
        return {"limit": str(limit)[:1000]}
    except MemoryError:
        return {"limit": OUT_OF_MEMORY}
    except RecursionError:
        return {"limit": TOO_DEEP}


def _rendered(renderer: Renderer, row: ChatRow) -> Reply:
    rendered = renderer.render(row)
    spans = [[span.start, span.end, span.weight] for span in rendered.spans]
    hits: list[Hit] = rendered.hits
    return {"text": rendered.text, "spans": spans, "hits": hits}


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises `TemplateLimit` after so much computing."""

    def out_of_time(*_: Any) -> None:
        raise TemplateLimit(f"it computes for more than {seconds:g} seconds")

    with system.computing_at_most(seconds, out_of_time, patience=_PATIENCE):
        yield


def serve(seconds: float, memory_bytes: int) -> None:
    """Answers frames until the requests end."""
    # an interrupt is for the process that asks, which then closes this one's requests
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    system.limit_memory(memory_bytes)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    server = Server(seconds)
    while (frame := read_frame(requests)) is not None:
        write_frame(answers, server.answer(frame[0]))
