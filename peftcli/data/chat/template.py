"""A chat template, compiled once. To be run where its work is bounded: see `bounds.py`."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from peftcli.data.chat.limits import OUT_OF_MEMORY, TOO_DEEP, TemplateFailure, TemplateLimit, TemplateRefusal
from peftcli.data.chat.names import DAY_VARIABLE, FIXED_DAY
from peftcli.data.chat.sandbox import Sandbox
from peftcli.data.rows import Message

# 16 Mi characters, as for any other text of a row
MAX_CHARACTERS = 16 << 20
_NAME = "<template>"
_PROBE = "Qv0z"


class ChatTemplate:
    """Renders conversations. `variables`: what it may read besides the conversation (special tokens, the recipe's own).

    `reads`: names of the variables that it looks at. Raises `TemplateFailure` with the line for a template that is
    malformed or fails, `TemplateLimit` for one that may not run; `TemplateRefusal` when the template itself refuses.
    """

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        # the day is a function of the sandbox, not a variable
        self._variables = {name: value for name, value in variables.items() if name != DAY_VARIABLE}
        environment = Sandbox(str(variables.get(DAY_VARIABLE, FIXED_DAY)))
        try:
            tree = environment.parse_alone(source)
            self.reads = frozenset(environment.variables_read(tree)) | _globals_read(tree)
            code = environment.compile(tree, filename=_NAME)
            self._template = environment.template_class.from_code(environment, code, environment.make_globals(None))
        except TemplateSyntaxError as error:
            raise TemplateFailure(f"not valid Jinja: {error.message or ''}", error.lineno) from error
        except RecursionError as error:
            raise TemplateLimit(TOO_DEEP) from error
        except MemoryError as error:
            raise TemplateLimit(OUT_OF_MEMORY) from error
        except Exception as error:  # whatever else the compiler stumbles over
            raise TemplateFailure(f"{type(error).__name__}: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        *,
        prompt: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text; with `prompt` it ends where the assistant begins to answer. `extra`: variables that
        win over those of the template's making."""
        if self.takes_parts:
            messages = [_in_parts(message) for message in messages]
        return self._rendered(messages, tools, prompt, extra)

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, prompt: bool, extra: Mapping[str, Any] | None
    ) -> str:
        given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        try:
            text = "".join(self._template.generate({**self._variables, **(extra or {}), **given}))
        except TemplateRefusal:
            raise
        except RecursionError as error:
            raise TemplateLimit(TOO_DEEP) from error
        except MemoryError as error:
            raise TemplateLimit(OUT_OF_MEMORY) from error
        except TemplateError as error:
            raise TemplateFailure(str(error) or type(error).__name__, _line_of(error)) from error
        except Exception as error:  # whatever a template does wrong with Python's own types
            raise TemplateFailure(str(error) or type(error).__name__, _line_of(error)) from error
        if len(text) > MAX_CHARACTERS:
            raise TemplateLimit(f"more than {MAX_CHARACTERS:,} characters of text")
        return text

    @cached_property
    def takes_parts(self) -> bool:
        """Whether it reads content only as a list of parts, as templates of models with images do."""
        return not self._shows({"role": "user", "content": _PROBE}) and self._shows(
            _in_parts({"role": "user", "content": _PROBE})
        )

    def _shows(self, message: Message) -> bool:
        try:
            return _PROBE in self._rendered([message], None, False, None)
        except (TemplateFailure, TemplateRefusal):
            return False


def _in_parts(message: Message) -> Message:
    content = message["content"]
    # a call without words has no part: an empty one would be written as an empty text
    parts = [{"type": "text", "text": content}] if content or "tool_calls" not in message else []
    return {**message, "content": parts}


def _globals_read(tree: Any) -> frozenset[str]:
    from jinja2 import nodes

    return frozenset({DAY_VARIABLE} & {node.name for node in tree.find_all(nodes.Name)})


def _line_of(error: Exception) -> int:
    # the last frame that lies in the template: deeper ones are in Jinja's filters
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _NAME]
    return lines[-1] or 0 if lines else 0
