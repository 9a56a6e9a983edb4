"""Llamas of a real one's shape with random weights, made on the spot; what a step on them costs; the device's own peak."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from peftcli.models.builtin import builtin_base

ROW_TOKENS = 2048
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama; `tied`: one table for input and output."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool

    @property
    def linear_parameters(self) -> int:
        """Weights that every token is multiplied with, the output head among them."""
        head = self.hidden // self.heads
        attention = 2 * self.hidden**2 + 2 * self.hidden * head * self.key_value_heads
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.hidden * self.vocabulary

    def lora_parameters(self, r: int) -> int:
        narrow = self.hidden // self.heads * self.key_value_heads
        widths = 2 * (self.hidden + self.hidden) + 2 * (self.hidden + narrow) + 3 * (self.hidden + self.intermediate)
        return self.layers * r * widths

    def step_flops_per_token(self, row_tokens: int, r: int) -> float:
        """Multiplications and additions of forward and backward with a frozen base.

        A frozen weight takes part twice (output, gradient of its input), a trained one three times, 2 operations each;
        causal attention needs 2 x row x hidden forward and twice that backward in each layer.
        """
        attention = 6 * self.layers * row_tokens * self.hidden
        return 4 * self.linear_parameters + 6 * self.lora_parameters(r) + attention


LLAMA_1B = Shape(2048, 8192, 16, 32, 8, 128256, True)
LLAMA_8B = Shape(4096, 14336, 32, 32, 8, 128256, False)
LLAMA_TINY = Shape(64, 160, 2, 4, 2, 1600, True)


def write_llama(folder: Path, shape: Shape, device: str, dtype: torch.dtype = torch.bfloat16) -> int:
    """Writes a Llama with the built-in base's tokenizer into `folder`; returns the bytes of its weights."""
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=2 * ROW_TOKENS,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype=dtype,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder, max_shard_size="2GB")
    for name in TOKENIZER_FILES:
        if (builtin_base("tiny") / name).is_file():
            shutil.copyfile(builtin_base("tiny") / name, folder / name)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def wait_for(device: str) -> None:
    """Until the device has done all that was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()


def matrix_peak(device: str, dtype: torch.dtype, size: int, repeats: int = 20) -> float:
    """Operations a second of a square product, the best of three series after a warm-up."""
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(3):
        one @ other
    best = 0.0
    for _ in range(3):
        wait_for(device)
        started = time.perf_counter()
        for _ in range(repeats):
            one @ other
        wait_for(device)
        best = max(best, repeats * 2 * size**3 / (time.perf_counter() - started))
    return best


def copy_rate(device: str, num_bytes: int, repeats: int = 10) -> float:
    """Bytes a second, read and written, of a copy within the device."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    wait_for(device)
    started = time.perf_counter()
    for _ in range(repeats):
        target.copy_(source)
    wait_for(device)
    return repeats * 2 * num_bytes / (time.perf_counter() - started)
