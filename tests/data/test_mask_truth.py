"""The mask, proven: on every template the trained tokens are exactly the answers as rendered, with their stop token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.data.config import DataConfig
from peftcli.data.encode import chat as chat_encoder
from peftcli.data.prepare import PreparedData, prepare
from peftcli.errors import DataError

# what ends an answer, and what the template writes in front of it after the prompt
STOPS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "qwen3": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "phi": "<|end|>",
    "zephyr": "</s>",
}
LEADS = {"mistral": " "}
WITH_TOOLS = ("llama3", "qwen3")
AWKWARD = [
    "plain",
    "\n\nstarts with line breaks",
    "ends with spaces  ",
    "user",
    "assistant\n",
    "<think>not special</think> here",
    "ünïcode 🐈‍⬛ and\ttabs",
    "the answer the answer the answer",
]


def _trained(data: PreparedData, row: int, tokenizer: Any) -> list[str]:
    encoded = data.train[row]
    trained = np.r_[0, (encoded.weights > 0).astype(int), 0]
    edges = np.flatnonzero(np.diff(trained))
    runs = [encoded.input_ids[start:end].tolist() for start, end in zip(edges[::2], edges[1::2], strict=True)]
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def _as_rendered(template: str, answer: str, *, last: bool) -> str:
    """What the template makes of an answer, written down by hand from its text."""
    if template in ("llama3", "gemma"):
        return answer.strip()
    if template == "qwen3":
        thought, _, rest = answer.rpartition("</think>")
        rest = rest.lstrip("\n") if "</think>" in answer or last else rest
        # the empty thought that the template adds to an answer without one is context
        return f"<think>\n{thought.removeprefix('<think>')}\n</think>\n\n{rest}" if last and thought else rest
    return LEADS.get(template, "") + answer


def _wrong_rows(data: PreparedData, rows: list[Any], tokenizer: Any, template: str) -> list[int]:
    """Lines whose trained text is not, turn for turn, the answer as the template renders it and its stop token."""
    wrong = []
    for number in range(len(data.train)):
        line = data.train.origin(number).line
        answers = [turn["content"] for turn in rows[line - 1]["messages"] if turn["role"] == "assistant"]
        wanted = [
            _as_rendered(template, answer, last=place == len(answers)) + STOPS[template]
            for place, answer in enumerate(answers, 1)
        ]
        if _trained(data, number, tokenizer) != wanted:
            wrong.append(line)
    return wrong


@pytest.mark.parametrize("template", STOPS)
def test_every_row_of_real_chats_is_exact(ground: Path, template: str, template_of: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ground / "models" / "bpe8k")
    specials = sorted({*STOPS.values(), "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>"})
    tokenizer.add_special_tokens({"additional_special_tokens": [each for each in specials if each != "</s>"]})
    tokenizer.chat_template = template_of(template)
    file = ground / "data" / "chat" / "messages_multiturn.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    data = prepare(
        DataConfig(train=str(file), max_length=100_000, validation=0), tokenizer=tokenizer, folder=file.parent, seed=0
    )
    assert len(data.train) == len(rows) == 147
    wrong = _wrong_rows(data, rows, tokenizer, template)
    print(f"{template}: {len(rows) - len(wrong)} of {len(rows)} rows decode exactly")
    assert wrong == []
    assert [finding for finding in data.findings if finding.severity == "fail"] == []


@pytest.mark.parametrize("template", STOPS)
def test_rows_with_tools_are_trained_or_refused_by_name(ground: Path, template: str, template_of: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ground / "models" / "bpe8k")
    tokenizer.add_special_tokens({"additional_special_tokens": sorted({*STOPS.values()} - {"</s>"})})
    tokenizer.chat_template = template_of(template)
    file = ground / "data" / "chat" / "glaive_toolcall_en_demo.json"
    config = DataConfig(train=str(file), max_length=100_000, validation=0)
    if template not in WITH_TOOLS:
        with pytest.raises(DataError, match=r"render the whole of tool call|refuses the row") as caught:
            prepare(config, tokenizer=tokenizer, folder=file.parent, seed=0)
        assert "row 1" in (caught.value.faults[0].where or "")
        return
    data = prepare(config, tokenizer=tokenizer, folder=file.parent, seed=0)
    rows = json.loads(file.read_text())
    assert len(data.train) == len(rows)
    for number, row in enumerate(rows):
        answers = [turn for turn in row["conversations"] if turn["from"] in ("gpt", "function_call")]
        trained = _trained(data, number, tokenizer)
        assert len(trained) == len(answers)
        for turn, text in zip(answers, trained, strict=True):
            assert text.endswith(STOPS[template])
            if turn["from"] == "gpt":
                assert turn["value"].strip() in text
            else:
                assert json.loads(turn["value"])["name"] in text


@pytest.mark.parametrize("template", STOPS)
def test_awkward_answers_are_exact(
    template: str, make_tokenizer: Any, template_of: Any, prepared: Callable[..., PreparedData], chat: Any
) -> None:
    tokenizer = make_tokenizer(template=template_of(template))
    rows = [chat("question", answer, "again", other) for answer in AWKWARD for other in AWKWARD]
    data = prepared(rows, tokenizer=tokenizer)
    assert len(data.train) == len(rows)
    assert _wrong_rows(data, rows, tokenizer, template) == []


def test_the_prompt_in_training_is_the_prompt_at_inference(
    make_tokenizer: Any, template_of: Any, prepared: Callable[..., PreparedData], chat: Any
) -> None:
    for template in ("chatml", "gemma", "mistral", "phi", "zephyr"):
        tokenizer = make_tokenizer(template=template_of(template))
        for answer in AWKWARD:
            row = chat("question", answer)
            data = prepared([row], tokenizer=tokenizer)
            prompt = tokenizer.apply_chat_template(
                row["messages"][:1], add_generation_prompt=True, tokenize=True, return_dict=False
            )
            encoded = data.train[0]
            first = int(np.flatnonzero(encoded.weights)[0])
            assert encoded.input_ids[:first].tolist() == prompt, (template, answer)


def test_a_planted_off_by_one_is_caught(
    monkeypatch: pytest.MonkeyPatch, prepared: Callable[..., PreparedData], chat: Any
) -> None:
    honest = chat_encoder.runs_of

    def shifted(ids: Any, spans: Any, ranges: Any, context: float) -> Any:
        return honest(ids, spans, [(first + 1, end + 1) for first, end in ranges], context)

    monkeypatch.setattr(chat_encoder, "runs_of", shifted)
    with pytest.raises(DataError, match="mask cannot be proven"):
        prepared([chat("question", "the answer", "more", "the cat")])


@pytest.mark.parametrize("shift", [(0, -1), (0, 1), (-1, 0), (1, 0)])
def test_a_shift_of_either_edge_is_mended_or_caught(
    monkeypatch: pytest.MonkeyPatch, prepared: Callable[..., PreparedData], chat: Any, trained_text: Any,
    chat_tokenizer: Any, shift: tuple[int, int],
) -> None:  # fmt: skip
    honest = chat_encoder.token_ranges

    def shifted(encoding: Any, spans: Any) -> Any:
        return [(first + shift[0], end + shift[1]) for first, end in honest(encoding, spans)]

    monkeypatch.setattr(chat_encoder, "token_ranges", shifted)
    data = prepared([chat("question", "the answer")])
    assert trained_text(data.train, 0, chat_tokenizer) == ["the answer<|im_end|>"]


def test_tokens_across_an_edge_are_cut_there(make_tokenizer: Any, prepared: Any, chat: Any, trained_text: Any) -> None:
    # the prompt ends in a space, which this tokenizer would join with the answer
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tokenizer = make_tokenizer(template=template)
    data = prepared([chat("question", "the cat", "and", "the dog")], tokenizer=tokenizer)
    assert trained_text(data.train, 0, tokenizer) == ["the cat<|end|>", "the dog<|end|>"]


def test_pad_equal_to_eos_changes_no_mask(make_tokenizer: Any, template_of: Any, prepared: Any, chat: Any) -> None:
    rows = [chat("question", "the answer")]
    one, other = (make_tokenizer(template=template_of("zephyr")) for _ in range(2))
    other.pad_token = other.eos_token
    weights = [prepared(rows, tokenizer=each).train[0].weights.tolist() for each in (one, other)]
    assert weights[0] == weights[1]
    assert weights[0][-2:] == [1.0, 0.0]


def test_tokenizers_that_change_text_are_held_to_their_own_reading(prepared: Any, chat: Any, trained_text: Any) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "<|end|>", "user", "assistant", ":", "the", "cat", "answer", "question"]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="<|end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ':' + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    data = prepared([chat("The question", "The Answer, unknown", "question", "cat")], tokenizer=tokenizer)
    assert trained_text(data.train, 0, tokenizer) == ["the answer [UNK] [UNK] <|end|>", "cat <|end|>"]
