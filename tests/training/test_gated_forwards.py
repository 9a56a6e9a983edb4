"""Feed-forward blocks that keep less: found by what they are, equal to the bit, and themselves again afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from peftcli import adapters
from peftcli.adapters.surgery import adapter_of
from peftcli.kernels.active import next_step, told, using
from peftcli.kernels.names import GATED_MLP, LOW_RANK
from peftcli.models.gated_mlp import gated_candidates, gated_mlps
from peftcli.training.activation_checkpointing import checkpointed_blocks
from peftcli.training.gated_forwards import gated_blocks

SIZES = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.2}  # fmt: skip
LORA = {"type": "lora", "r": 3, "target_modules": "all-linear"}


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def gemma2() -> nn.Module:
    return Gemma2ForCausalLM(Gemma2Config(**SIZES))


def qwen2() -> nn.Module:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES))


def passes(model: nn.Module, names: list[str], every: int = 0) -> tuple[Tensor, dict[str, Tensor], dict[str, str]]:
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    model.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    with (
        using(names),
        gated_blocks(model, GATED_MLP in names),
        checkpointed_blocks(list(model.model.layers), every),
    ):
        next_step()
        loss = model(input_ids=ids, use_cache=False).logits.float().square().mean()
        loss.backward()
        facts = told()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, facts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", [llama, gemma2, qwen2], ids=lambda build: build.__name__)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_gradient_is_the_same_to_the_bit(
    build: Callable[[], nn.Module], dtype: torch.dtype, dropout: float
) -> None:
    torch.manual_seed(0)
    model = build().to(dtype).train()
    adapters.attach(model, {**LORA, "lora_dropout": dropout})
    with torch.no_grad():
        for tensor in adapter_of(model).trainable_parameters().values():
            tensor.add_(torch.randn(tensor.shape) * 0.1)
    model.train()
    without, wanted, _ = passes(model, [LOW_RANK])
    loss, found, facts = passes(model, [LOW_RANK, GATED_MLP])
    assert facts[GATED_MLP] == "taken"
    assert torch.equal(loss, without)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())
    _, again, _ = passes(model, [LOW_RANK, GATED_MLP], every=1)
    assert all(torch.equal(again[name], gradient) for name, gradient in wanted.items())


def test_the_blocks_are_themselves_again() -> None:
    model = llama().train()
    forwards = [vars(layer.mlp).get("forward") for layer in model.model.layers]
    with gated_blocks(model, True) as count:
        assert count == 2
        assert "forward" in vars(model.model.layers[0].mlp)
    assert [vars(layer.mlp).get("forward") for layer in model.model.layers] == forwards == [None, None]


class Block(nn.Module):
    """A gated block with something beside, by `how`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.act = nn.SiLU(inplace=how == "inplace")
        self.how = how

    def forward(self, x: Tensor) -> Any:
        gate, up = (self.b(x), self.a(x)) if self.how == "exchanged" else (self.a(x), self.b(x))
        inner = self.act(gate) * up
        if self.how == "dropout":
            inner = F.dropout(inner, 0.5, self.training)
        if self.how == "residual":
            return self.c(inner) + x
        return (self.c(inner), None) if self.how == "tuple" else self.c(inner)


@pytest.mark.parametrize(("how", "count"), [("plain", 1), ("exchanged", 1), ("dropout", 0), ("residual", 0), ("tuple", 0),
                                            ("inplace", 0)])  # fmt: skip
def test_a_block_is_taken_for_what_it_answers(how: str, count: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(how))
    before = torch.get_rng_state()
    found = gated_mlps(model)
    assert len(found) == count
    assert torch.equal(torch.get_rng_state(), before)
    if how == "exchanged":
        assert (found[0].gate, found[0].up, found[0].down) == ("b", "a", "c")
    assert len(list(gated_candidates(model))) == 2


def test_a_block_without_a_gate_is_no_candidate() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=2))
    assert list(gated_candidates(model)) == []
