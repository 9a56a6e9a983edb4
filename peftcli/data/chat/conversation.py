"""One conversation under one template, and the renderings of it that show where its parts stand; each is made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Protocol

from peftcli.data.chat.limits import TemplateFailure, TemplateRefusal
from peftcli.data.chat.marks import THOUGHTS, Places, Policy, places
from peftcli.data.rows import Message


class Template(Protocol):
    """What renders: `ChatTemplate`."""

    @property
    def reads(self) -> frozenset[str]:
        """Names of the variables that the template looks at."""

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        *,
        prompt: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation as text; `prompt`: with the beginning of an answer. `extra`: further variables of the template."""


class Conversation:
    """`text`: the whole conversation as the template writes it. Raises what rendering it raises."""

    def __init__(
        self,
        template: Template,
        messages: Sequence[Message],
        tools: Sequence[Any] | None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.template = template
        self.messages = list(messages)
        self.tools = tools
        self._extra = extra
        self.text = self._render(self.messages)
        # one cache for each conversation: a cache on the method would keep every row alive
        self._cut = cache(self._made_cut)
        self._prompt = cache(self._made_prompt)

    def _render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        return self.template.render(messages, self.tools, prompt=prompt, extra=self._extra)

    def prompt(self, number: int) -> str:
        """What the model is given at inference to write message `number`."""
        return self._prompt(number)

    def _made_prompt(self, number: int) -> str:
        return self._render(self.messages[:number], prompt=True)

    @cached_property
    def places(self) -> Places | None:
        """Where every text stands; None where the template looks at the marks."""
        # marks at both ends first; after the texts alone where a template looks at how a text begins
        return self._places(self.messages, self.text, (Policy(), Policy(begins=False)))

    @cache  # noqa: B019 - a conversation lives as long as its row
    def places_of(self, number: int) -> Places | None:
        """Where the texts of one message stand."""
        if self.places is not None:
            return self.places
        return self._places(self.messages, self.text, (Policy(only=number), Policy(begins=False, only=number)))

    def prompt_places(self, number: int) -> Places | None:
        """Where the texts of the messages before stand in the prompt of message `number`."""
        policies = (Policy(), Policy(begins=False), Policy(only=number - 1), Policy(begins=False, only=number - 1))
        try:
            return places(
                lambda marked: self._render(marked, prompt=True), self.messages[:number], self.prompt(number), policies
            )
        except (TemplateRefusal, TemplateFailure):
            return None

    def _places(self, messages: Sequence[Message], text: str, policies: Sequence[Policy]) -> Places | None:
        try:
            return places(self._render, messages, text, policies)
        except (TemplateRefusal, TemplateFailure):
            return None

    def cut_after(self, number: int) -> Conversation | None:
        """The conversation as if message `number` were its last; None where the template refuses that."""
        return self._cut(number)

    def _made_cut(self, number: int) -> Conversation | None:
        return self if number == len(self.messages) - 1 else self._other(self.messages[: number + 1])

    def followed(self, number: int) -> Conversation | None:
        """The conversation up to message `number` and one more turn after it, of whatever role the template takes."""
        # a call is answered by its tool under most templates; where they refuse that, by the user
        before = self.messages[: number + 1]
        calls = self.messages[number].get("tool_calls", ())
        user: Message = {"role": "user", "content": "What follows."}
        results = [
            {"role": "tool", "content": "What follows.", "name": call["function"]["name"], **_call_id(call)}
            for call in calls[:1]
        ]
        for message in (*results, user):
            longer = self._other([*before, message])
            if longer is not None and longer.places is not None and longer.places.first(number + 1) is not None:
                return longer
        return None

    def with_thought(self, number: int) -> Conversation | None:
        """Cut after message `number`, which gets a thought."""
        thinking = {**self.messages[number], **dict.fromkeys(THOUGHTS, "A thought.")}
        return self._other([*self.messages[:number], thinking])

    def of(self, messages: Sequence[Message]) -> Conversation | None:
        """Another conversation under the same template and variables, with the same tools."""
        return self._other(messages)

    def under(self, extra: Mapping[str, Any]) -> Conversation | None:
        """The same with other variables of the template."""
        try:
            return Conversation(self.template, self.messages, self.tools, extra)
        except (TemplateRefusal, TemplateFailure):
            return None

    def _other(self, messages: Sequence[Message]) -> Conversation | None:
        try:
            return Conversation(self.template, messages, self.tools, self._extra)
        except (TemplateRefusal, TemplateFailure):
            return None


def _call_id(call: Mapping[str, Any]) -> dict[str, Any]:
    return {"tool_call_id": call["id"]} if "id" in call else {}
