"""Tiny bases of many families with random weights, and adapters on them that change something."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from peftcli import adapters
from peftcli.adapters.surgery import adapter_of
from peftcli.testing.families import FAMILIES

VOCAB = 264
SPECIAL = ["<bos>", "</s>", "<|im_end|>", "<|im_start|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 256, "eos_token_id": 257,
    "pad_token_id": None,
}  # fmt: skip


def build_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a byte, and four special ones; no pad token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    tokenizer.chat_template = template
    return tokenizer


def random_model(kind: str, config: str, fields: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model of a transformers class, drawn wide enough that its answers differ from token to token."""
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(3.0)
    return model.to(dtype)


def llama(dtype: torch.dtype = torch.float32, **fields: Any) -> nn.Module:
    return random_model("LlamaForCausalLM", "LlamaConfig", {**SMALL, "tie_word_embeddings": False, **fields}, dtype)


def family(name: str) -> nn.Module:
    """A model of the contract suite's families, with room for the tokens here."""
    builder = FAMILIES[name]
    torch.manual_seed(0)
    model = builder()
    model.resize_token_embeddings(VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(3.0)
    return model.eval()


def write_base(folder: Path, model: nn.Module, template: str | None = TEMPLATE) -> Path:
    model.save_pretrained(folder)
    build_tokenizer(template).save_pretrained(folder)
    return folder


def write_adapter(
    folder: Path,
    base: Path,
    section: str | dict[str, Any],
    *,
    size: float = 0.02,
    auto_class: str = "AutoModelForCausalLM",
    edit: Callable[[str, nn.Parameter], None] | None = None,
) -> Path:
    """An adapter with every trained tensor moved at random by `size`."""
    model = getattr(transformers, auto_class).from_pretrained(base, dtype=torch.float32).eval()
    adapters.attach(model, section, seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapter_of(model).trainable_parameters().items():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
            if edit is not None:
                edit(name, parameter)
    adapters.save(model, folder, base_name=str(base))
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def types_of(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as opened:
            found |= {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    return found


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Changes the tensors of a folder with one weight file."""
    tensors = tensors_of(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


LORA: dict[str, Any] = {"type": "lora", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
