"""The Modelfile's template gives the tokenizer's own text, or the export says that it cannot."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from export_bases import CHATML, by_bytes, by_pieces, make_adapter
from transformers import PreTrainedTokenizerFast

from peftcli.errors import AdapterError
from peftcli.exporting.ollama import chat_pieces, write_modelfile
from peftcli.folders import staged_folder
from peftcli.jobs.opening import open_adapter

LLAMA_3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
QWEN = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + CHATML
ALPACA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n{% elif m.role == 'user' %}"
    "### Instruction:\n{{ m.content }}\n\n### Response:\n{% else %}{{ m.content }}\n\n{% endif %}{% endfor %}"
)
EXPRESSIBLE = {"chatml": CHATML, "llama-3": LLAMA_3, "qwen": QWEN, "alpaca": ALPACA}
NUMBERED = "{% for m in messages %}[{{ loop.index }}] {{ m.role }}: {{ m.content }}\n{% endfor %}[a] "
SHOUTED = CHATML.replace("message.content", "message.content | upper")
SYSTEM_INSIDE = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ system if loop.last else '' }}{{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
THINKING = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHATML
EXPRESSIBLE |= {"a thought is opened": THINKING, "no system message": NO_SYSTEM}
REFUSED = {"numbered": NUMBERED, "shouted": SHOUTED, "system inside the last turn": SYSTEM_INSIDE}
CONVERSATIONS = (
    [("user", "Hello?")],
    [("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2"), ("user", "And\ntwo?")],
)


def tokenizer_with(folder: Path, template: str) -> Any:
    by_bytes(folder, "qwen2", template)
    return PreTrainedTokenizerFast.from_pretrained(folder)


_FAILS = "\0"


class Go:
    """The few actions of Go's templates that a Modelfile of ours has, run from the text that is written."""

    def __init__(self, template: str) -> None:
        pieces = re.split(r"\{\{ (.*?) \}\}", template)
        assert not any(pieces[::2]), "nothing stands outside of actions"
        self.actions = pieces[1::2]

    def run(self, messages: list[dict[str, str]]) -> str:
        self.messages = [dict(message) for message in messages]
        text = self._block(0, {})[1]
        if _FAILS in text:
            raise IndexError("no system message")
        return text

    def _block(self, place: int, message: dict[str, str]) -> tuple[int, str]:
        """Up to `end` or `else` on this level: its place, and the text."""
        text = ""
        while place < len(self.actions):
            action = self.actions[place]
            if action == "end" or action.startswith("else"):
                break
            if action.startswith("range "):
                start = place + 1
                for each in self.messages:
                    place, one = self._block(start, each)
                    text += one
                place += 1
            elif action.startswith("if "):
                place, one = self._branches(place, message)
                text += one
            elif action.startswith("slice "):
                # both branches are run here, and Go fails in the one that is taken
                text, place = text + _FAILS, place + 1
            else:
                text, place = text + (message["content"] if action == ".Content" else json.loads(action)), place + 1
        return place, text

    def _branches(self, place: int, message: dict[str, str]) -> tuple[int, str]:
        chosen = None
        while (action := self.actions[place]) != "end":
            holds = self._holds(action.removeprefix("else").strip(), message)
            place, text = self._block(place + 1, message)
            chosen = text if chosen is None and holds else chosen
        return place + 1, chosen or ""

    def _holds(self, condition: str, message: dict[str, str]) -> bool:
        role = re.fullmatch(r'if eq \.Role "(\w+)"', condition)
        if role is not None:
            return message.get("role") == role[1]
        if condition == "if eq (len (slice $.Messages $place)) 1":
            return message is self.messages[-1]
        if condition == "if .System":
            return any(each["role"] == "system" for each in self.messages)
        return condition == ""


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_the_written_template_gives_the_tokenizers_text(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_with(tmp_path, EXPRESSIBLE[name])
    written = chat_pieces(tokenizer, "here").template()
    for turns in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in turns]
        if name == "no system message" and turns[0][0] == "system":
            with pytest.raises(IndexError, match="no system message"):
                Go(written).run(messages)
            continue
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert Go(written).run(messages) == expected


@pytest.mark.parametrize("style", ["chat", "plain"])
def test_an_adapter_of_raw_text_is_not_asked_through_a_template(tmp_path: Path, style: str) -> None:
    """The notes beside an adapter say how its prompts looked; a template that it never saw is not for it."""
    adapter = make_adapter("builtin:tiny", tmp_path / "adapter", {"type": "lora", "r": 2})
    own = json.loads((adapter / "peftcli.json").read_text())
    (adapter / "peftcli.json").write_text(json.dumps(own | {"notes": {"prompt": style}}))
    with staged_folder(tmp_path / "out") as staging:
        write_modelfile(staging, open_adapter(adapter, device="cpu"), merged=False, stops=[2])
    written = (tmp_path / "out" / "Modelfile").read_text()
    assert ("{{ .Prompt }}" in written) == (style == "plain")
    assert ("<|user|>" in written) == (style == "chat")
    assert 'PARAMETER stop "<|end|>"' in written


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(AdapterError, match="cannot be expressed for Ollama"):
        chat_pieces(tokenizer_with(tmp_path, REFUSED[name]), "here")


def test_a_server_that_adds_the_start_token_adds_what_was_trained(tmp_path: Path) -> None:
    """The tokenizer says that every text begins with `<s>`, and so does the server; a template without it was trained
    without it."""
    by_pieces(tmp_path, prefix=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer.chat_template = "{{ bos_token }}" + ALPACA
    messages = [{"role": "user", "content": "Hello?"}]
    assert "<s>" + Go(chat_pieces(tokenizer, "here").template()).run(messages) == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    tokenizer.chat_template = ALPACA
    with pytest.raises(AdapterError, match="begins without the start token"):
        chat_pieces(tokenizer, "here")
