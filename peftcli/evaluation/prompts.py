"""A prompt as token ids, the same ids as in training: through the chat template where the rows were conversations, else
as plain text after what the tokenizer puts in front of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftcli.data.asking import token_ids
from peftcli.data.chat.bounds import BoundTemplate
from peftcli.data.chat.limits import TemplateRefusal
from peftcli.data.chat.messages import parse_messages, parse_tools
from peftcli.data.faults import RowFault
from peftcli.data.rows import Message
from peftcli.data.tokens import chat_template, template_kwargs
from peftcli.errors import DataError, ModelError, RecipeError


def encode_text(tokenizer: Any, text: str, *, whole: bool = False) -> list[int]:
    """Ids of a plain prompt: what the tokenizer puts in front of a text (BOS), the text, and nothing after.

    `whole`: with what it puts after, as the encoder of an encoder-decoder reads a text that has ended.
    """
    bare, full = token_ids(tokenizer, text, special=False), token_ids(tokenizer, text)
    if whole:
        return full
    starts = range(len(full) - len(bare) + 1)
    start = next((start for start in starts if full[start : start + len(bare)] == bare), 0)
    return [*full[:start], *bare]


def encode_messages(
    tokenizer: Any, messages: Sequence[Message], *, tools: list[Any] | None = None, system_prompt: str | None = None
) -> list[int]:
    """Ids of a conversation with the opening of the next answer.

    Raises `ModelError` where there is no chat template or it fails, `DataError` where it refuses the conversation.
    """
    rendered = _render(tokenizer, _with_system(messages, system_prompt), tools, prompt=True)
    # the template writes the special tokens itself
    return token_ids(tokenizer, rendered, special=False)


def prompt_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """A conversation with the opening of the next answer, as the chat template writes it.

    Raises `ModelError` where there is no chat template or it fails, `DataError` where it refuses the conversation.
    """
    return _render(tokenizer, list(messages), None, prompt=True)


def encode_prompt(
    tokenizer: Any,
    prompt: str | Sequence[Message],
    *,
    system_prompt: str | None = None,
    chat: bool | None = None,
    whole: bool = False,
) -> list[int]:
    """Ids of what `peft generate` is asked: messages, or a text.

    `chat` says whether a text is one user message or is to be continued as it stands, which must be as the adapter was
    trained (segments and text rows are plain even where there is a template); None: a message where the
    tokenizer has a chat template. `whole`: a plain text for an encoder.
    """
    if not isinstance(prompt, str):
        return encode_messages(tokenizer, prompt, system_prompt=system_prompt)
    if bool(tokenizer.chat_template) if chat is None else chat:
        return encode_messages(tokenizer, [{"role": "user", "content": prompt}], system_prompt=system_prompt)
    if system_prompt is not None:
        raise RecipeError(
            "generation.system_prompt has no effect on a plain text prompt",
            fix="remove it; a system message needs a chat template and an adapter that was trained on chats",
        )
    return encode_text(tokenizer, prompt, whole=whole)


def encode_row(
    tokenizer: Any,
    row: Mapping[str, Any],
    *,
    where: str,
    system_prompt: str | None = None,
    chat: bool | None = None,
    whole: bool = False,
) -> list[int]:
    """Ids of a row of `peft generate --input`: `prompt` (a text or messages) or `messages`, with `tools` if it likes.

    A trailing answer is left out: it is what the model is asked for. Raises `DataError` at `where` (`file:line`).
    """
    prompt = row.get("prompt", row.get("messages"))
    if isinstance(prompt, str):
        return encode_prompt(tokenizer, prompt, system_prompt=system_prompt, chat=chat, whole=whole)
    try:
        messages, _ = parse_messages(prompt) if prompt is not None else ([], [])
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if not messages:
            raise RowFault("the row has no prompt", 'write {"prompt": "..."} or {"messages": [...]}')
        return encode_messages(tokenizer, messages, tools=parse_tools(row.get("tools")), system_prompt=system_prompt)
    except RowFault as fault:
        raise DataError(fault.message, where=where, fix=fault.fix) from fault


def stop_token_ids(model: Any, tokenizer: Any, *, chat: bool = True) -> list[int]:
    """Every token that ends an answer: of the tokenizer, of the model's generation config and of the chat template.

    `chat`: whether the template's counts; it means nothing to an adapter that was trained on plain text.
    """
    found: list[int] = []
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    for ids in (tokenizer.eos_token_id, configured, _template_stop(tokenizer) if chat else None):
        found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return sorted(set(found))


def _template_stop(tokenizer: Any) -> int | None:
    """The special token with which a chat template ends the turn of an answer: the last one, where it writes several."""
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    try:
        template = _template(tokenizer, tools=False, tokens=tuple(special))
        end = "" if template is None else template.turn_end()
    except ModelError:
        # a template with needs of its own: the other two sources have to do
        return None
    ending = [text for text in special if text.strip() and end.rstrip().endswith(text)]
    return special[max(ending, key=len)] if ending else None


def _render(tokenizer: Any, messages: Sequence[Message], tools: list[Any] | None, *, prompt: bool) -> str:
    template = _template(tokenizer, tools=bool(tools))
    if template is None:
        raise ModelError(
            "this tokenizer has no chat template, so it cannot hold a conversation",
            fix="give the recipe one with `model.chat_template`, or use `peft generate --prompt`",
        )
    try:
        return template.render(messages, tools, prompt=prompt)
    except TemplateRefusal as refusal:
        raise DataError(
            f"the chat template refuses this conversation: {refusal}",
            fix="roles and their order must suit the template",
        ) from refusal


def _template(tokenizer: Any, *, tools: bool, tokens: tuple[str, ...] = ()) -> BoundTemplate | None:
    source = chat_template(tokenizer, tools=tools)
    if not source:
        return None
    named = {name: str(value) for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return BoundTemplate(source, {**named, **template_kwargs(tokenizer)}, tokens=tokens, stops=tokens)


def _with_system(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    own = any(message["role"] in ("system", "developer") for message in messages)
    if system_prompt is None or own:
        return list(messages)
    return [{"role": "system", "content": system_prompt}, *messages]
