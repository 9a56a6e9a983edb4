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
from peftcli.errors import AdapterError, DataError, PeftcliError
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
    opening_system: str | None
    """None where the template refuses system messages."""
    after_system: str
    before_user: str
    after_user: str
    """Up to an answer that follows: the end of the user's turn and the beginning of the assistant's."""
    prompt: str
    """The same where the answer is still to be written; some templates open a thought only here."""
    after_answer: str

    def rendered(self, messages: Sequence[Message]) -> str:
        """The prompt as Ollama will write it."""
        has_system = any(message["role"] == "system" for message in messages)
        text = (self.opening_system or "") if has_system else self.opening
        for place, message in enumerate(messages, start=1):
            content = str(message["content"])
            if message["role"] == "system":
                text += content + self.after_system
            elif message["role"] == "user":
                text += self.before_user + content + (self.prompt if place == len(messages) else self.after_user)
            else:
                text += content + self.after_answer
        return text

    def template(self) -> str:
        """The same as a Go template; every piece is a quoted string, so that no space is lost or won."""
        # an index beyond the text is the one way in that language to refuse
        opening = _REFUSING if self.opening_system is None else _quoted(self.opening_system)
        behind = _quoted(self.after_user)
        if self.prompt != self.after_user:
            behind = f"{{{{ if {_LAST} }}}}{_quoted(self.prompt)}{{{{ else }}}}{behind}{{{{ end }}}}"
        return (
            f"{{{{ if .System }}}}{opening}{{{{ else }}}}{_quoted(self.opening)}{{{{ end }}}}"
            "{{ range $place, $message := .Messages }}"
            f'{{{{ if eq .Role "system" }}}}{{{{ .Content }}}}{_quoted(self.after_system)}'
            f'{{{{ else if eq .Role "user" }}}}{_quoted(self.before_user)}{{{{ .Content }}}}{behind}'
            f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{_quoted(self.after_answer)}'
            "{{ end }}{{ end }}"
        )


_LAST = "eq (len (slice $.Messages $place)) 1"
_REFUSING = '{{ slice "no system message" 99 }}'


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
        notes += [note for note, conversation in _BEYOND.items() if not _holds(tokenizer, pieces, [conversation])]
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
    turns = _shown(tokenizer, [_user(first), _assistant(answer), _user(second)], where)
    opened = None if _refuses_system(tokenizer) else _shown(tokenizer, [_system(system), _user(first)], where)
    repeated = any(turns.count(mark) != 1 for mark in (first, answer, second))
    if repeated or (opened is not None and (opened.count(system) != 1 or opened.count(first) != 1)):
        raise _cannot("it changes, repeats or leaves out messages", where)
    head, rest = turns.split(first)
    after_user, rest = rest.split(answer)
    between, prompt = rest.split(second)
    opening_system, rest = (None, f"{between}{first}{prompt}") if opened is None else opened.split(system)
    between_system, _, prompt_system = rest.partition(first)
    before_user = _from_a_token(tokenizer, _common_end(_common_end(head, between), between_system))
    pieces = ChatPieces(
        opening=_without_bos(tokenizer, head.removesuffix(before_user)),
        opening_system=None if opening_system is None else _without_bos(tokenizer, opening_system),
        after_system=between_system.removesuffix(before_user),
        before_user=before_user,
        after_user=after_user,
        prompt=prompt,
        after_answer=between.removesuffix(before_user),
    )
    if prompt != prompt_system or not _holds(tokenizer, pieces, _PLAIN):
        raise _cannot("what it writes around a message depends on the others", where)
    return pieces


def _shown(tokenizer: Any, messages: Sequence[Message], where: str) -> str:
    try:
        text = prompt_text(tokenizer, messages)
    except PeftcliError as error:
        raise _cannot(f"it refuses a plain conversation ({error.message})", where) from error
    if _adds_bos(tokenizer) and not text.startswith(tokenizer.bos_token):
        raise _cannot("it begins without the start token, which the server puts before every text", where)
    return text


def _refuses_system(tokenizer: Any) -> bool:
    """Whether the template refuses a system message, and not the conversation behind it."""
    try:
        prompt_text(tokenizer, [_system("a"), _user("b")])
    except DataError:
        return True
    return False


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
    if pieces.opening_system is None:
        conversations = [messages for messages in conversations if messages[0]["role"] != "system"]
    try:
        return all(
            _without_bos(tokenizer, prompt_text(tokenizer, messages)) == pieces.rendered(messages)
            for messages in conversations
        )
    except DataError:
        return False


def _without_bos(tokenizer: Any, text: str) -> str:
    """Without the start token where the tokenizer puts one before every text: so does the server."""
    return text.removeprefix(tokenizer.bos_token) if _adds_bos(tokenizer) else text


def _adds_bos(tokenizer: Any) -> bool:
    start = tokenizer("a").input_ids[:1]
    return tokenizer.bos_token is not None and start == [tokenizer.bos_token_id]


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
    [_user("a"), _assistant("b"), _user("c"), _assistant("d"), _user("e"), _assistant("f"), _user("g")],
)
"""Conversations that must come out equal."""
_BEYOND: dict[str, Sequence[Message]] = {
    "the template strips spaces and line breaks around a message, Ollama's language cannot: send none": [
        _user("\n\n  padded \n"), _assistant("\n\n a \n"), _user("z "),
    ],
    "the template leaves thoughts out of earlier answers, Ollama's language cannot: send answers without theirs": [
        _user("a"), _assistant("<think>\nb\n</think>\n\nc"), _user("d"),
    ],
    "the template has its own way with a system message behind the first place: send none there": [
        _user("a"), _assistant("b"), _system("c"), _user("d"),
    ],
}  # fmt: skip
"""What to know where these do not come out equal."""
