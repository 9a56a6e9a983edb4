"""A small byte-level tokenizer with the special tokens of the template fixtures, and `prepare` on rows given in Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from peftcli.data.config import DataConfig
from peftcli.data.prepare import PreparedData, prepare

TEMPLATES = Path(__file__).parent / "templates"
SPECIALS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
]
CORPUS = [
    "the cat sat on the mat and the dog ran to the park",
    "what is the answer to this question? the answer is here.",
    "user assistant system model 0 1 2 3 4 5 6 7 8 9 \n\n Hello there, how are you?",
]


def build_tokenizer(*, adds_bos: bool = True, specials: Sequence[str] = SPECIALS, template: str | None = None) -> Any:
    """A fresh byte-level BPE tokenizer as transformers wraps it; it gives every text back unchanged."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS * 4, trainer)
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    if specials:
        tokenizer.add_special_tokens({"additional_special_tokens": list(specials)})
    tokenizer.chat_template = template
    return tokenizer


def template_text(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def plain_tokenizer() -> Any:
    """Without a chat template."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    """With the ChatML template."""
    return build_tokenizer(template=template_text("chatml"))


@pytest.fixture
def make_tokenizer() -> Callable[..., Any]:
    return build_tokenizer


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: Sequence[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def prepared(tmp_path: Path, write_rows: Callable[..., Path], chat_tokenizer: Any) -> Callable[..., PreparedData]:
    """`prepared(rows, key=value, ...)`: the rows as a JSONL file under the keys of the data section."""

    def run(rows: Sequence[Any], *, tokenizer: Any = None, seed: int = 0, **keys: Any) -> PreparedData:
        write_rows(rows)
        config = DataConfig.model_validate({"train": "rows.jsonl", "validation": 0, **keys})
        return prepare(config, tokenizer=tokenizer or chat_tokenizer, folder=tmp_path, seed=seed)

    return run


def _chat(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns)]}


@pytest.fixture(scope="session")
def chat() -> Callable[..., dict[str, Any]]:
    """`chat("Hi", "Hello.")`: a row of messages, user and assistant by turns."""
    return _chat


def _trained_text(store: Any, row: int, tokenizer: Any) -> list[str]:
    encoded = store[row]
    runs: list[list[int]] = []
    before = 0.0
    for token, weight in zip(encoded.input_ids.tolist(), encoded.weights.tolist(), strict=True):
        if weight > 0:
            if before == 0:
                runs.append([])
            runs[-1].append(token)
        before = weight
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


@pytest.fixture(scope="session")
def trained_text() -> Callable[..., list[str]]:
    """`trained_text(store, row, tokenizer)`: the text of each run of trained tokens of a row."""
    return _trained_text


@pytest.fixture(scope="session")
def template_of() -> Callable[[str], str]:
    """The source of a template fixture."""
    return template_text
