"""One turn of a conversation; the command line does the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from peftcli.data.rows import Message
from peftcli.errors import DataError
from peftcli.evaluation.config import GenerationConfig
from peftcli.evaluation.generate import GeneratedAnswer, Stream, check_fits, generate_stream
from peftcli.evaluation.prompts import encode_messages

Disabled = Callable[[], AbstractContextManager[Any]]
"""Gives a context in which the model answers as its base does, such as `lambda: adapters.disabled(model)`; or in which
another model is given that does."""


@dataclass(frozen=True)
class Conversation:
    """What was said so far; a new one comes from each turn."""

    messages: tuple[Message, ...] = ()

    def said(self, role: str, content: str) -> Conversation:
        """The conversation with one more message."""
        return replace(self, messages=(*self.messages, {"role": role, "content": content}))


@dataclass(frozen=True)
class Turn:
    """The answer to one message. The conversation goes on with the tuned model's answer."""

    conversation: Conversation
    reply: GeneratedAnswer
    base: GeneratedAnswer | None


def take_turn(
    model: Any,
    tokenizer: Any,
    conversation: Conversation,
    message: str,
    *,
    config: GenerationConfig,
    stream: Stream = lambda _piece: None,
    disabled: Disabled | None = None,
    base_stream: Stream = lambda _piece: None,
    seed: int = 0,
) -> Turn:
    """Answers `message` in a conversation; with `disabled` the base answers too, and first.

    `stream` and `base_stream` receive the answers in pieces. Raises `ModelError` where the tokenizer has no chat
    template, and `DataError` when the conversation no longer fits the model's context.
    """
    asked = conversation.said("user", message)
    prompt = encode_messages(tokenizer, asked.messages, system_prompt=config.system_prompt)
    # before anything is written: half an answer of the base would stand on the screen
    _require_room(model, prompt, config)
    base = None
    if disabled is not None:
        with disabled() as other:
            plain = model if other is None else other
            _require_room(plain, prompt, config)
            base = generate_stream(plain, tokenizer, prompt, config=config, stream=base_stream, seed=seed)
    reply = generate_stream(model, tokenizer, prompt, config=config, stream=stream, seed=seed)
    return Turn(asked.said("assistant", reply.text), reply, base)


def _require_room(model: Any, prompt: Sequence[int], config: GenerationConfig) -> None:
    try:
        check_fits(model, [prompt], config=config)
    except DataError as error:
        raise DataError(
            error.faults[0].message, fix="start a new conversation, or lower generation.max_new_tokens"
        ) from error
