"""Tiny bases of the families that exports know, with random weights and the kinds of tokenizer that they come with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from peftcli import adapters
from peftcli.exporting.gguf.vocabulary import CUTS

TEXT = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps until the morning comes.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))  # 3, as everybody knows",
    "Please write a short reply to the following request. Thank you for your message!",
    "Question: Where does the sun rise? Answer: it rises in the east, in 1848 as in 2024.",
]
WORDS = {name: expression for expression, name in CUTS.items()}


def by_bytes(folder: Path, cut: str, template: str | None = None) -> None:
    """Byte-level BPE whose text is cut as by one of the well-known expressions."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(_regex(WORDS[cut]), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    _save(tokenizer, folder, template, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def by_pieces(folder: Path, *, prefix: bool, bos: bool = True) -> None:
    """BPE over pieces with `▁` and byte fallback, as SentencePiece models become."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    # cut at spaces for training only: no merge goes over them
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=500, special_tokens=special))
    tokenizer.pre_tokenizer = None
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = document["added_tokens"][:3]
    _save(Tokenizer.from_str(json.dumps(document)), folder, None, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _regex(expression: str) -> Any:
    from tokenizers import Regex

    return Regex(expression)


def _save(tokenizer: Tokenizer, folder: Path, template: str | None, **special: str) -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = template
    fast.save_pretrained(folder)


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256, "initializer_range": 0.2,
    "bos_token_id": None, "pad_token_id": None,
}  # fmt: skip
_STRETCHED = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
Tokens = Callable[[Path], None]
FAMILIES: dict[str, tuple[str, dict[str, Any], Tokens]] = {
    "llama": ("llama", {"attention_bias": True}, lambda folder: by_pieces(folder, prefix=True)),
    "llama-3.1": (
        "llama",
        {"rope_parameters": _STRETCHED, "tie_word_embeddings": True},
        lambda folder: by_bytes(folder, "llama-bpe", CHATML),
    ),
    "mistral": ("mistral", {"sliding_window": None}, lambda folder: by_pieces(folder, prefix=True)),
    # llama.cpp has no other size of heads for this family
    "qwen2": ("qwen2", {"head_dim": 16}, lambda folder: by_bytes(folder, "qwen2", CHATML)),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}, lambda folder: by_bytes(folder, "qwen2", CHATML)),
    "gemma": ("gemma", {}, lambda folder: by_pieces(folder, prefix=False)),
    "gemma2": (
        "gemma2",
        {"query_pre_attn_scalar": 32, "sliding_window": 32},
        lambda folder: by_pieces(folder, prefix=False),
    ),
    "gemma3": (
        "gemma3_text",
        {"query_pre_attn_scalar": 32, "sliding_window": 32, "num_hidden_layers": 6},
        lambda folder: by_pieces(folder, prefix=False),
    ),
    "phi3": ("phi3", {"sliding_window": None, "head_dim": 16}, lambda folder: by_bytes(folder, "gpt-2")),
}


def make_base(family: str, folder: Path) -> Path:
    """Writes the base and returns its folder."""
    kind, fields, tokens = FAMILIES[family]
    folder.mkdir(parents=True)
    tokens(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    sizes = {**_SIZES, **fields, "vocab_size": len(tokenizer) + 3, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    with torch.no_grad():
        # norms that a family adds one to must not hide behind zeros
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


def make_adapter(base: Path | str, folder: Path, section: dict[str, Any]) -> Path:
    """An adapter with random tensors beside a base; returns its folder."""
    from peftcli.models.load import load_model
    from peftcli.models.source import resolve_base

    model = load_model(resolve_base(str(base), folder=Path.cwd()))
    adapters.attach(model, section)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapters.save(model, folder, base_name=str(base))
    return folder
