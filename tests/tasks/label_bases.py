"""Small bases of several families with a tokenizer of characters, written where a test wants them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'"


def tokenizer(*, framed: bool = True) -> transformers.PreTrainedTokenizerFast:
    """One token a character, `##` inside words. `framed`: as BERT frames texts; else nothing around them, and the pad
    token is the end token, as in many decoders."""
    words = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    found = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer(lowercase=True)
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if framed:
        found.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    else:
        names = {"eos_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=found, unk_token="[UNK]", **names)


VOCABULARY = len(SPECIAL) + 2 * len(LETTERS)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
}


def write_bert(folder: Path) -> Path:
    """An encoder without a head."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=64)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_llama(folder: Path) -> Path:
    """A decoder with a language head."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=64, eos_token_id=3)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer(framed=False).save_pretrained(folder)
    return folder


def write_gpt2(folder: Path) -> Path:
    """A decoder with a language head whose linear layers have biases."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.1, bos_token_id=3,
        eos_token_id=3,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer(framed=False).save_pretrained(folder)
    return folder
