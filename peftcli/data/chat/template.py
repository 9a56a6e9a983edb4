"""A chat template, compiled once and rendered within bounds of size, work, memory and time."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta

from peftcli.data.chat.budget import TemplateLimit
from peftcli.data.chat.sandbox import BoundedEnvironment
from peftcli.data.faults import excerpt
from peftcli.data.rows import Message
from peftcli.errors import ModelError

MAX_TEMPLATE_BYTES = 64 << 10
_NAME = "<template>"
_RENDER_ERRORS = (
    TemplateError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
    NotImplementedError,
)


class ChatTemplate:
    """Renders conversations. One thread at a time: the work counter belongs to the template.

    `reads`: names of the variables that it looks at; `calls_tools`: whether it writes the tool calls of an answer.

    Raises `ModelError` (exit 4) with the line for a template that is too large, malformed, fails or does too much work;
    `TemplateRefusal` passes through when the template itself refuses a conversation.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        size = len(source.encode("utf-8", "surrogatepass"))
        if size > MAX_TEMPLATE_BYTES:
            raise ModelError(f"the chat template has {size:,} bytes; more than {MAX_TEMPLATE_BYTES:,} are not rendered")
        self._environment = BoundedEnvironment()
        self.calls_tools = "tool_calls" in source
        self._variables = dict(variables)
        try:
            tree = self._environment.parse_bounded(source)
            self.reads = frozenset(meta.find_undeclared_variables(tree))
            code = self._environment.compile(tree, filename=_NAME)
            self._template = self._environment.template_class.from_code(
                self._environment, code, self._environment.make_globals(None)
            )
        except TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template is not valid Jinja: {excerpt(error.message or '', 200)}",
                where=f"chat template, line {error.lineno}",
                fix="mend it, or name another: `model.chat_template: FILE`",
            ) from error
        except (TemplateLimit, RecursionError, TemplateError, ArithmeticError, MemoryError) as error:
            raise _over_limit(error) from error

    def render(self, messages: Sequence[Message], tools: Sequence[Any] | None = None, *, prompt: bool = False) -> str:
        """The conversation as text; with `prompt` it ends where the assistant begins to answer."""
        self._environment.budget.start()
        try:
            return "".join(
                self._template.generate(
                    {
                        **self._variables,
                        "messages": messages,
                        "tools": tools,
                        "documents": None,
                        "add_generation_prompt": prompt,
                    }
                )
            )
        except TemplateLimit as error:
            raise _over_limit(error) from error
        except _RENDER_ERRORS as error:
            raise ModelError(
                f"the chat template fails: {excerpt(str(error) or type(error).__name__, 200)}",
                where=_line_of(error),
                fix="mend the row or the template, or name another: `model.chat_template: FILE`",
            ) from error


def _over_limit(error: Exception) -> ModelError:
    reason = str(error) if isinstance(error, TemplateLimit) else type(error).__name__
    return ModelError(
        f"the chat template is refused: {excerpt(reason, 200)}",
        fix="name one that you trust: `model.chat_template: FILE`",
    )


def _line_of(error: Exception) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _NAME]
    return f"chat template, line {lines[-1]}" if lines else "chat template"
