"""Chat templates, rendered in a process of their own that bounds their work as a whole: see `server.py`.

One such process serves all templates of this one; it starts with the first and is replaced when a template breaks it.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from peftcli import bounded_process
from peftcli.data.chat.limits import BEGUN, TemplateRefusal
from peftcli.data.chat.spans import RenderedChat, Span
from peftcli.data.config import TrainOn
from peftcli.data.faults import RowFault, excerpt
from peftcli.data.rows import ChatRow, Message
from peftcli.data.wire import write_frame
from peftcli.errors import ModelError

# several times the size of the largest public templates
MAX_TEMPLATE_BYTES = 64 << 10
MAX_SECONDS = 1.0
"""Of computing, for one rendering: that of a long conversation takes some hundredths."""
# 512 MiB: templates need a few; a string that doubles in a loop would take all
MAX_MEMORY_BYTES = 512 << 20
"""Of the whole process."""
_BEGINNING = 16
"""Messages at the beginning of a long row: a template that renders them is not the cause of what the row needs."""
_MEND = "correct it, or name another: `model.chat_template: FILE`"

Outcome = RenderedChat | RowFault | TemplateRefusal | ModelError
"""What becomes of a row."""


class _Process:
    """The process and the templates that it has opened. Safe for several threads, one request at a time."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._ids: dict[str, tuple[int, list[str]]] = {}

    def ask(self, key: str, opening: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request about a template; `{"limit": why}` where the process did not outlive it, then with the
        `row` that it was at."""
        if self._owner != os.getpid():
            # in a fork: the process belongs to the parent, and talks with it alone
            self._lock, self._child, self._ids, self._owner = threading.RLock(), None, {}, os.getpid()
        with self._lock:
            if key not in self._ids:
                opened = self._exchange({"do": "open", **opening})
                if "template" not in opened:
                    return opened
                self._ids[key] = opened["template"], opened["reads"]
            number, reads = self._ids[key]
            if request["do"] == "open":
                return {"reads": reads}
            return self._exchange({**request, "template": number})

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        child = self._child or self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            write_frame(child.stdin, request)
            line = child.stdout.readline()
        except BrokenPipeError:
            line = b""
        told = line.lstrip(BEGUN)
        if not told.endswith(b"\n"):
            self.close()
            # one sign came in front of the answer for each row that was begun
            begun = len(line) - len(told)
            return {"limit": "it needs more time or memory than any conversation does", "row": begun - 1}
        answer: dict[str, Any] = json.loads(told)
        if "limit" in answer:
            # what it holds of memory may never come back
            self.close()
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        self._child = bounded_process.start("peftcli.data.chat.server", "serve", MAX_SECONDS, MAX_MEMORY_BYTES)
        return self._child

    def close(self) -> None:
        if self._owner != os.getpid():
            return
        with self._lock:
            child, self._child = self._child, None
            self._ids.clear()
            if child is not None:
                child.kill()
                child.communicate()


_process = _Process()
atexit.register(_process.close)


class BoundTemplate:
    """A chat template. `variables`: what it may read besides the conversation; `tokens` and `stops`: the texts of the
    tokenizer's added tokens, and of those that may end an answer. `reads`: names of the variables that it looks at.

    Raises `ModelError` (exit 4) with the line for a template that is too large, malformed, fails or does too much work;
    `TemplateRefusal` passes through when the template itself refuses a conversation.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, Any],
        *,
        tokens: Sequence[str] = (),
        stops: Sequence[str] = (),
        train_on: TrainOn = "completions",
        thoughts: float = 1.0,
    ) -> None:
        size = len(source.encode("utf-8", "surrogatepass"))
        if size > MAX_TEMPLATE_BYTES:
            raise ModelError(f"the chat template has {size:,} bytes; more than {MAX_TEMPLATE_BYTES:,} are not rendered")
        self._opening = {
            "source": source,
            "variables": dict(variables),
            "tokens": sorted(tokens),
            "stops": sorted(stops),
            "train_on": train_on,
            "thoughts": thoughts,
        }
        # equal templates with equal variables are one, whoever opened them
        self._key = json.dumps(self._opening)
        answer = self._ask({"do": "open"})
        if "reads" not in answer:
            raise _broken(answer)
        self.reads = frozenset(answer["reads"])

    def render(self, messages: Sequence[Message], tools: Sequence[Any] | None = None, *, prompt: bool = False) -> str:
        """The conversation as text; with `prompt` it ends where the assistant begins to answer."""
        request = {"do": "text", "messages": list(messages), "tools": tools, "prompt": prompt}
        return self._text(self._ask(request))

    def turn_end(self) -> str:
        """What the template writes after an answer as the end of its turn; empty where it does not tell."""
        return self._text(self._ask({"do": "turn end"}))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        return _process.ask(self._key, self._opening, request)

    def _text(self, answer: dict[str, Any]) -> str:
        if "refusal" in answer:
            raise TemplateRefusal(answer["refusal"])
        if "text" not in answer:
            raise _broken(answer)
        return str(answer["text"])

    def render_rows(self, rows: Sequence[ChatRow]) -> list[Outcome]:
        """What becomes of each row; nothing comes after a row on which the template breaks (`ModelError`)."""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(rows):
            outcomes += self._rendered(rows[len(outcomes) :])
            if isinstance(broken := outcomes[-1], ModelError):
                fault = self._fault_of(rows[len(outcomes) - 1]) if isinstance(broken, _TooMuchWork) else None
                if fault is None:
                    break
                outcomes[-1] = fault
        return outcomes

    def _rendered(self, rows: Sequence[ChatRow]) -> list[Outcome]:
        request = {"do": "rows", "rows": [[row.messages, row.weights, row.tools] for row in rows]}
        answer = self._ask(request)
        if "rows" in answer:
            if answer["rows"] and "limit" in answer["rows"][-1]:
                _process.close()
            return [_outcome(each) for each in answer["rows"]]
        # the process died: what stood before the row that it died on is rendered again
        before = rows[: max(answer.get("row", 0), 0)]
        return [*(self._rendered(before) if before else ()), _broken(answer)]

    def _fault_of(self, row: ChatRow) -> RowFault | None:
        """The fault of a row that asks too much of a template which renders its beginning; None: it is the template's."""
        if len(row.messages) <= _BEGINNING:
            return None
        beginning = ChatRow(row.messages[:_BEGINNING], row.weights[:_BEGINNING], row.tools)
        if isinstance(self._rendered([beginning])[0], _TooMuchWork):
            return None
        return RowFault(
            f"a conversation of {len(row.messages):,} messages needs more time or memory than a row may take under the "
            "chat template",
            "shorter conversations, or `data.train_on: last-turn`",
        )


class _TooMuchWork(ModelError):
    """A rendering met a bound of its process."""


def _outcome(answer: dict[str, Any]) -> Outcome:
    if "text" in answer:
        spans = [Span(start, end, weight) for start, end, weight in answer["spans"]]
        return RenderedChat(answer["text"], spans, [(check, message) for check, message in answer["hits"]])
    if "fault" in answer:
        return RowFault(answer["fault"], answer["fix"])
    if "refusal" in answer:
        return TemplateRefusal(answer["refusal"])
    return _broken(answer)


def _broken(answer: dict[str, Any]) -> ModelError:
    if "limit" in answer:
        return _TooMuchWork(
            f"the chat template is refused: {excerpt(answer['limit'], 200)}",
            fix="name one that you trust: `model.chat_template: FILE`",
        )
    if "failure" in answer:
        reason, line = excerpt(answer["failure"], 200), answer["line"]
        where = f"chat template, line {line}" if line else "chat template"
        if reason.startswith("not valid Jinja"):
            return ModelError(f"the chat template is {reason}", where=where, fix=_MEND)
        return ModelError(
            f"the chat template fails: {reason}", where=where, fix=f"correct the row or the template; {_MEND}"
        )
    return ModelError(f"the chat template refuses: {excerpt(str(answer.get('refusal', '')), 200)}", fix=_MEND)
