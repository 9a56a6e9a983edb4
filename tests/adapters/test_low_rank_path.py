"""The fast path of low-rank layers on whole models: the same loss and gradients as the plain forms, or left to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from peftcli import adapters
from peftcli.adapters.surgery import adapter_of, layer_kernels
from peftcli.kernels.active import next_step, told, using
from peftcli.kernels.names import LOW_RANK
from peftcli.training.activation_checkpointing import checkpointed_blocks

SIZES = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.2}  # fmt: skip
ALL = {"target_modules": "all-linear", "r": 3}
TAKEN: Mapping[str, Mapping[str, Any]] = {
    "lora": {"type": "lora", **ALL},
    "rank_pattern": {"type": "lora", "rank_pattern": {"q_proj": 5}, **ALL},
    "rslora": {"type": "lora", "use_rslora": True, **ALL},
    "lora_bias": {"type": "lora", "lora_bias": True, **ALL},
    "dora": {"type": "dora", **ALL},
    "lora_fa": {"type": "lora_fa", **ALL},
    "adalora": {"type": "adalora", "target_modules": "all-linear", "init_r": 4, "target_r": 2},
    "upper_layer": {"type": "lora", "layers_to_transform": [1], **ALL},
    "head": {"type": "lora", "r": 3, "target_modules": ["q_proj", "lm_head"]},
}
LEFT: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "dropout": ({"type": "lora", "lora_dropout": 0.5, **ALL}, "nothing here could use it"),
    "pissa": ({"type": "pissa", **ALL}, "nothing here could use it"),
}


def llama(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)).to(dtype)


def gpt2(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=61, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **sizes)).to(dtype)


def attached(model: nn.Module, section: Mapping[str, Any]) -> nn.Module:
    adapters.attach(model, dict(section))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in adapter_of(model).trainable_parameters().values():
            tensor.add_(torch.empty(tensor.shape).normal_(0.0, 0.1, generator=generator))
    return model.train()


def passes(model: nn.Module, names: list[str]) -> tuple[Tensor, dict[str, Tensor], dict[str, str]]:
    """Loss and gradients of one batch, and what is told of the fast paths."""
    ids = torch.randint(0, 61, (3, 12), generator=torch.Generator().manual_seed(1))
    model.zero_grad(set_to_none=True)
    with using(names):
        next_step()
        logits = model(input_ids=ids, use_cache=False).logits.float()
        loss = nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 61), ids[:, 1:].reshape(-1))
        loss.backward()
        facts = told()
    found = {name: t.grad.clone() for name, t in adapter_of(model).trainable_parameters().items() if t.grad is not None}
    return loss.detach(), found, facts


def require_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, wanted in other.items():
        assert (one[name] - wanted).norm() <= tolerance * wanted.norm() + 1e-9, name


@pytest.mark.parametrize("label", TAKEN)
def test_loss_and_gradients_are_those_of_the_plain_form(label: str) -> None:
    model = attached(llama(), TAKEN[label])
    assert layer_kernels(model) == {LOW_RANK}
    plain, wanted, nothing = passes(model, [])
    loss, found, facts = passes(model, [LOW_RANK])
    assert facts == {LOW_RANK: "taken"}
    assert nothing == {}
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    require_equal(found, wanted, 1e-5)


def test_a_base_that_stores_its_weights_transposed() -> None:
    model = attached(gpt2(), {"type": "lora", **ALL})
    plain, wanted, _ = passes(model, [])
    loss, found, facts = passes(model, [LOW_RANK])
    assert facts == {LOW_RANK: "taken"}
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    require_equal(found, wanted, 1e-5)


@pytest.mark.parametrize("label", ["lora", "dora", "adalora"])
def test_in_half_precision_both_forms_are_as_near_to_the_exact_gradients(label: str) -> None:
    exact = attached(llama(torch.bfloat16).float(), TAKEN[label])
    model = attached(llama(torch.bfloat16), TAKEN[label])
    _, wanted, _ = passes(exact, [])
    _, plain, _ = passes(model, [])
    _, found, _ = passes(model, [LOW_RANK])

    def error(of: Mapping[str, Tensor]) -> float:
        return float(sum((of[name] - t).square().sum() for name, t in wanted.items()).sqrt())  # type: ignore[union-attr]

    total = float(sum(t.square().sum() for t in wanted.values()).sqrt())  # type: ignore[union-attr]
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert error(found) <= 2.0 * error(plain) + 1e-3 * total


@pytest.mark.parametrize("label", LEFT)
def test_what_it_cannot_take_stays_plain_to_the_bit(label: str) -> None:
    section, why = LEFT[label]
    model = attached(llama(), section)
    torch.manual_seed(5)
    plain, wanted, _ = passes(model, [])
    torch.manual_seed(5)
    loss, found, facts = passes(model, [LOW_RANK])
    assert why in facts[LOW_RANK]
    assert torch.equal(loss, plain)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_layers_with_a_trained_bias_stay_plain_beside_the_others() -> None:
    model = attached(llama(), {"type": "lora", "bias": "lora_only", **ALL})
    plain, wanted, _ = passes(model, [])
    loss, found, facts = passes(model, [LOW_RANK])
    assert facts[LOW_RANK] == "taken, not where a layer has several adapters or a trained bias"
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    require_equal(found, wanted, 1e-5)


def test_a_hook_or_another_forward_of_a_base_layer_is_heeded() -> None:
    model = attached(llama(), TAKEN["lora"])
    layers = [layer.base_layer for _, layer in adapter_of(model).layers]  # type: ignore[attr-defined]
    layers[0].register_forward_hook(lambda module, args, output: output * 2.0)
    own = type(layers[1]).forward
    layers[1].forward = lambda x: own(layers[1], x) + 1.0
    plain, wanted, _ = passes(model, [])
    loss, found, facts = passes(model, [LOW_RANK])
    assert facts[LOW_RANK] == "taken, not where a hook is on a layer, a layer has a forward of its own"
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    require_equal(found, wanted, 1e-5)


def test_autocast_is_left_to_torch() -> None:
    model = attached(llama(), TAKEN["lora"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, wanted, _ = passes(model, [])
        loss, found, facts = passes(model, [LOW_RANK])
    assert "autocast" in facts[LOW_RANK]
    assert torch.equal(loss, plain)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_blocks_that_are_computed_again_give_the_same_gradients() -> None:
    model = attached(llama(), TAKEN["lora"])
    _, wanted, _ = passes(model, [LOW_RANK])
    with checkpointed_blocks(list(model.model.layers), 1):
        _, found, facts = passes(model, [LOW_RANK])
    assert facts == {LOW_RANK: "taken"}
    require_equal(found, wanted, 1e-6)


def test_without_gradients_every_answer_is_the_plain_one() -> None:
    model = attached(llama(torch.bfloat16), TAKEN["lora"]).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        plain = model(input_ids=ids, use_cache=False).logits
        with using([LOW_RANK]):
            assert torch.equal(model(input_ids=ids, use_cache=False).logits, plain)


def test_compiled_code_takes_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    model = attached(llama(), TAKEN["lora"])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    _, _, facts = passes(model, [LOW_RANK])
    assert facts[LOW_RANK].startswith("not taken")


def test_every_optimizer_step_is_seen() -> None:
    """In half precision the layers compute with copies: a stale one would repeat the answer from before the step."""
    curves = []
    for names in ([], [LOW_RANK]):
        model = attached(llama(torch.bfloat16), TAKEN["lora"])
        optimizer = torch.optim.AdamW(adapter_of(model).trainable_parameters().values(), lr=0.01, fused=True)
        curves.append([])
        for _ in range(4):
            curves[-1].append(passes(model, names)[0].item())
            optimizer.step()
    assert curves[0][0] > 1.2 * curves[0][-1], "the steps move the loss far more than rounding does"
    assert curves[1] == pytest.approx(curves[0], rel=0.05)
