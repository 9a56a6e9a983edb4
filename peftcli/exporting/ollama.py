"""A Modelfile for Ollama: the GGUF file, the chat template in Ollama's own language, stop tokens and parameters.

Ollama renders a Go template, not the tokenizer's Jinja. The pieces around each kind of message are found by rendering
marked conversations through the tokenizer's template; put together by the rules of the written template they must
give the tokenizer's text for other conversations, else nothing is written: a model that is asked through another
template than it was trained with answers worse, and nobody is told.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftcli import folders
from peftcli.data.rows import Message
from peftcli.errors import AdapterError, PeftcliError
from peftcli.evaluation.prompts import prompt_text
from peftcli.exporting.gguf import adapter as gguf_adapter
from peftcli.exporting.gguf import model as gguf_model
from peftcli.jobs.merge import answers_chats
from peftcli.jobs.opening import OpenModel, writing_of

NAME = "Modelfile"
_MARKS = ("QZUSER1", "QZANSWER", "QZUSER2", "QZSYSTEM")
_BASE_NAME = "base.gguf"


@dataclass(frozen=True)
class ChatPieces:
    """The text around each message. `opening`: before everything, without and with a system message."""

    opening: str
    opening_system: str
    after_system: str
    before_user: str
    after_user: str
    """Up to the next answer: the end of the user's turn and the beginning of the assistant's."""
    after_answer: str

    def rendered(self, messages: Sequence[Message]) -> str:
        """The prompt as Ollama will write it."""
        has_system = bool(messages) and messages[0]["role"] == "system"
        text = self.opening_system if has_system else self.opening
        for message in messages:
            content = str(message["content"])
            if message["role"] == "system":
                text += content + self.after_system
            elif message["role"] == "user":
                text += self.before_user + content + self.after_user
            else:
                text += content + self.after_answer
        return text

    def template(self) -> str:
        """The same as a Go template; every piece is a quoted string, so that no space is lost or won."""
        return (
            f"{{{{ if .System }}}}{_quoted(self.opening_system)}{{{{ else }}}}{_quoted(self.opening)}{{{{ end }}}}"
            "{{ range .Messages }}"
            f'{{{{ if eq .Role "system" }}}}{{{{ .Content }}}}{_quoted(self.after_system)}'
            f'{{{{ else if eq .Role "user" }}}}{_quoted(self.before_user)}{{{{ .Content }}}}{_quoted(self.after_user)}'
            f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{_quoted(self.after_answer)}'
            "{{ end }}{{ end }}"
        )


def write_modelfile(
    staging: folders.StagedFolder, opened: OpenModel, *, merged: bool, stops: Sequence[int]
) -> tuple[str, ...]:
    """Writes the Modelfile beside the GGUF file; returns what to know. Raises `AdapterError` for a template that Ollama's
    language cannot express."""
    tokenizer, notes = opened.tokenizer, []
    lines = [f"FROM ./{gguf_model.NAME}" if merged else f"FROM ./{_BASE_NAME}"]
    if not merged:
        lines.append(f"ADAPTER ./{gguf_adapter.NAME}")
        notes.append(f"put the base as {_BASE_NAME} beside the Modelfile, or name it in the line FROM")
    chat = answers_chats(opened) and bool(tokenizer.chat_template)
    if chat:
        pieces = chat_pieces(tokenizer, str(opened.location.adapter))
        lines.append(f'TEMPLATE """{pieces.template()}"""')
        if not _holds(tokenizer, pieces, _PADDED):
            notes.append("the template strips spaces around a message, Ollama's language cannot: send none")
    else:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    names = (tokenizer.convert_ids_to_tokens(number) for number in stops)
    lines += [f"PARAMETER stop {json.dumps(name, ensure_ascii=False)}" for name in names]
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(opened).items()]
    staging.write(NAME, ("\n".join(lines) + "\n").encode("utf-8"))
    notes.append("not run: ollama; its template was held against the tokenizer's" if chat else "not run: ollama")
    return tuple(notes)


def _parameters(opened: OpenModel) -> dict[str, Any]:
    config = writing_of(opened.location).config
    drawn = {"temperature": config.temperature, "top_p": config.top_p} if config.do_sample else {"temperature": 0}
    limit = {} if config.max_new_tokens == "auto" else {"num_predict": config.max_new_tokens}
    return {**drawn, **limit}


def chat_pieces(tokenizer: Any, where: str) -> ChatPieces:
    """Raises `AdapterError` where the tokenizer's template does more than put texts around messages."""
    first, answer, second, system = _MARKS
    try:
        turns = prompt_text(tokenizer, [_user(first), _assistant(answer), _user(second)])
        opened = prompt_text(tokenizer, [_system(system), _user(first)])
    except PeftcliError as error:
        raise _cannot(f"it refuses a plain conversation ({error.message})", where) from error
    if any(turns.count(mark) != 1 for mark in (first, answer, second)) or opened.count(system) != 1:
        raise _cannot("it changes, repeats or leaves out messages", where)
    head, rest = turns.split(first)
    after_user, rest = rest.split(answer)
    between, tail = rest.split(second)
    opening_system, rest = opened.split(system)
    between_system, _, tail_system = rest.partition(first)
    before_user = _from_a_token(tokenizer, _common_end(_common_end(head, between), between_system))
    pieces = ChatPieces(
        opening=_without_bos(tokenizer, head.removesuffix(before_user)),
        opening_system=_without_bos(tokenizer, opening_system),
        after_system=between_system.removesuffix(before_user),
        before_user=before_user,
        after_user=after_user,
        after_answer=between.removesuffix(before_user),
    )
    if not after_user == tail == tail_system or not _holds(tokenizer, pieces, _PLAIN):
        raise _cannot("what it writes around a message depends on the others", where)
    return pieces


def _common_end(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def _from_a_token(tokenizer: Any, text: str) -> str:
    """The text from its first special token on: `<|user|>` is not to begin within the end of the token before it."""
    special = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return text[min((place for token in special if (place := text.find(token)) >= 0), default=0) :]


def _holds(tokenizer: Any, pieces: ChatPieces, conversations: Sequence[Sequence[Message]]) -> bool:
    """Whether the pieces give the tokenizer's own text, the start token aside, which the server adds by itself."""
    return all(
        _without_bos(tokenizer, prompt_text(tokenizer, messages)) == pieces.rendered(messages)
        for messages in conversations
    )


def _without_bos(tokenizer: Any, text: str) -> str:
    """Without the start token where the tokenizer puts one before every text: so does the server."""
    start = tokenizer("a").input_ids[:1]
    adds = tokenizer.bos_token is not None and start == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if adds else text


def _quoted(text: str) -> str:
    """A Go template action that writes the text."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _cannot(why: str, where: str) -> AdapterError:
    return AdapterError(
        f"the chat template cannot be expressed for Ollama: {why}",
        where=where,
        fix="--to gguf carries the template itself, for servers that read Jinja (llama-server --jinja)",
    )


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


_PLAIN = (
    [_user("What is 2 + 2?")],
    [_user('Say "hi" {{ twice }}.\n\nThen stop.'), _assistant("hi hi"), _user("Again?")],
    [_system("Be brief.\nBe kind."), _user("Grüße! 你好")],
    [_system("x"), _user("a"), _assistant("b"), _user("c"), _assistant("d\n\ne"), _user("f")],
)
"""Conversations that must come out equal."""
_PADDED = ([_user("  padded \n")], [_system(" s "), _user("\n u"), _assistant(" a "), _user("z ")])
