"""The variables of chat templates that a recipe may set (`model.chat_template_kwargs`), checked against what they read."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftcli.data.chat.bounds import BoundTemplate
from peftcli.data.chat.names import DAY_VARIABLE, FIXED_DAY, GIVEN
from peftcli.data.names import nearest
from peftcli.data.tokens import chat_template, template_kwargs
from peftcli.errors import ModelError, RecipeError

_KEY = "model.chat_template_kwargs"


@dataclass(frozen=True)
class ChatMode:
    """How conversations are written. `kwargs`: the recipe's variables; `day`: the date that stands in every prompt, None
    where the template asks for none."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    day: str | None = None

    @property
    def text(self) -> str:
        """As one line, empty where there is nothing to say."""
        named = [f"{name}: {_plain(value)}" for name, value in sorted(self.kwargs.items()) if name != DAY_VARIABLE]
        return ", ".join([*named, *([f"dated {self.day}"] if self.day else [])])

    @property
    def warnings(self) -> list[str]:
        """That the day is fixed, where the template writes it and the recipe does not set it."""
        if self.day is None or DAY_VARIABLE in self.kwargs:
            return []
        return [
            f"the chat template writes today's date; here it is always {self.day}, so that runs repeat "
            f"(`{_KEY}: {{{DAY_VARIABLE}: {datetime.date.today()}}}` sets another)"
        ]


def chat_mode(tokenizer: Any) -> ChatMode:
    """The mode of a tokenizer's chat template. Raises `RecipeError` for a variable that no template of it reads, and
    `ModelError` for a template that is malformed."""
    kwargs = template_kwargs(tokenizer)
    # templates by name: rows with tools may have one of their own
    sources = {source for tools in (False, True) if (source := chat_template(tokenizer, tools=tools))}
    if not sources:
        if kwargs:
            raise RecipeError(f"{_KEY} has no effect: the tokenizer has no chat template", fix="leave it out")
        return ChatMode()
    # without a variable nothing need be compiled, which takes a process of its own
    if not kwargs and not any(DAY_VARIABLE in source for source in sources):
        return ChatMode()
    reads = check_variables(kwargs, sorted(sources))
    return ChatMode(kwargs, str(kwargs.get(DAY_VARIABLE, FIXED_DAY)) if DAY_VARIABLE in reads else None)


def check_variables(kwargs: Mapping[str, Any], sources: Sequence[str]) -> frozenset[str]:
    """The variables that templates read. Raises `RecipeError` for one that is set and that none of them reads."""
    reads = frozenset[str]().union(*(BoundTemplate(source, {}).reads for source in sources))
    # what every prompt is given (messages, tools, ...) is not for a recipe to set, the day is
    known = sorted((reads - GIVEN) | (reads & {DAY_VARIABLE}))
    for name in kwargs:
        if name not in known:
            raise RecipeError(
                f"the chat template does not read {name!r}{nearest(name, known)}",
                where=_KEY,
                fix=f"it reads: {', '.join(known)}" if known else "it has no variables to set: leave the key out",
            )
    return reads


def check_template(source: str, where: str) -> None:
    """Raises `ModelError` at `where` for a template that does not compile."""
    try:
        BoundTemplate(source, {})
    except ModelError as error:
        raise ModelError(
            error.message, where=f"{where}; {error.where}" if error.where else where, fix=error.fix
        ) from error


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
