"""What a training pass keeps for the backward pass and how many operators it runs, a token and layer: peftcli and peft.

Counted and not timed, so the figures are the same on every machine. The backbone of a Llama in bf16 with LoRA of rank 16
on every linear layer; the share that does not grow with the layers is taken out by counting two depths.

    python tests/benchmarks/kept_bytes.py          # ours, and peft's where it is installed, as JSON
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from peftcli import adapters
from peftcli.kernels.active import next_step, using
from peftcli.training.gated_forwards import gated_blocks

TOKENS = 512
SHAPE = {"vocab_size": 64, "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 64}  # fmt: skip
DEPTHS = (1, 3)
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


class _Operators(TorchDispatchMode):
    """Counts what is computed; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not getattr(func, "is_view", False)
        return func(*args, **(kwargs or {}))


def base(layers: int) -> LlamaForCausalLM:
    """A Llama with random weights in bf16."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=layers)).to(torch.bfloat16).train()


def ours(names: list[str]) -> dict[str, float]:
    """Of LoRA by peftcli with these fast paths."""

    def build(layers: int) -> tuple[nn.Module, nn.Module]:
        model = base(layers)
        adapters.attach(model, {"type": "lora", **LORA})
        return model, model.model

    return _by_layer(build, names)


def theirs() -> dict[str, float]:
    """Of LoRA by peft at its defaults: adapters in float32."""
    import peft

    def build(layers: int) -> tuple[nn.Module, nn.Module]:
        model = peft.get_peft_model(base(layers), peft.LoraConfig(**LORA, task_type="CAUSAL_LM"))
        return model, model.base_model.model.model

    return _by_layer(build, [])


def _by_layer(build: Callable[[int], tuple[nn.Module, nn.Module]], names: list[str]) -> dict[str, float]:
    few, many = (_counted(*build(layers), names) for layers in DEPTHS)
    layers = DEPTHS[1] - DEPTHS[0]
    return {
        "kept_bytes_per_token_and_layer": (many[0] - few[0]) / layers / TOKENS,
        "operators_per_layer": (many[1] - few[1]) / layers,
    }


def _counted(model: nn.Module, backbone: nn.Module, names: list[str]) -> tuple[int, int]:
    """Bytes kept beside the parameters, each memory once, and operators of both passes."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in parameters:
            kept[memory.data_ptr()] = memory  # held, so that no other tensor gets its place
        return tensor

    ids = torch.arange(TOKENS)[None] % SHAPE["vocab_size"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(using(names))
        stack.enter_context(gated_blocks(model, "gated_mlp" in names))
        next_step()
        operators = stack.enter_context(_Operators())
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = backbone(input_ids=ids, use_cache=False).last_hidden_state
        bytes_kept = sum(memory.nbytes() for memory in kept.values())
        kept.clear()
        states.backward(torch.ones_like(states))
    return bytes_kept, operators.count


if __name__ == "__main__":
    figures = {"peftcli, plain": ours([]), "peftcli": ours(["low_rank", "gated_mlp"])}
    if importlib.util.find_spec("peft") is not None:
        figures["peft"] = theirs()
    print(json.dumps(figures, indent=1))
