"""How far an adapter moves each weight: norms from two factors equal those of the weights before and after a merge."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from peftcli.adapters import attach, merge
from peftcli.adapters.surgery import adapter_of
from peftcli.adapters.updates import product_norm, update_norms

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "r": 3},
    "pissa": {"type": "lora", "r": 3, "init_lora_weights": "pissa"},
    "dora": {"type": "dora", "r": 3},
    "rslora": {"type": "lora", "r": 3, "use_rslora": True},
    "a table": {"type": "lora", "r": 3, "target_modules": ["embed_tokens", "q_proj"]},
    "adalora": {"type": "adalora"},
    "loha": {"type": "loha", "r": 2},
    "lokr": {"type": "lokr", "r": 2},
    "oft": {"type": "oft"},
    "ia3": {"type": "ia3"},
    "vera": {"type": "vera", "r": 8},
}


def model() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def stirred(base: nn.Module, method: dict[str, Any]) -> nn.Module:
    attach(base, method)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in (entry.tensor for entry in adapter_of(base).entries() if entry.tensor.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return base


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_norms_are_those_of_a_merge(method: dict[str, Any]) -> None:
    base = model()
    before = copy.deepcopy(base.state_dict())
    tuned = stirred(base, method)
    norms = {item.layer: item for item in update_norms(tuned)}
    merge(tuned)
    after = tuned.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {f"{name}.weight" for name in norms} >= changed
    assert norms
    for name, item in norms.items():
        change = after[f"{name}.weight"].double() - before[f"{name}.weight"].double()
        assert item.norm == pytest.approx(float(change.norm()), rel=1e-4, abs=1e-5), name
        assert item.relative == pytest.approx(
            float(change.norm() / before[f"{name}.weight"].norm()), rel=1e-4, abs=1e-5
        )


def test_a_prompt_moves_no_weight() -> None:
    assert update_norms(stirred(model(), {"type": "prompt_tuning", "num_virtual_tokens": 2})) == []


def test_a_start_that_cancels_has_no_norm() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(64, 4) * 100.0, torch.randn(4, 48)
    assert product_norm(torch.cat([left, -left], dim=1), torch.cat([right, right])) < 1e-3 * float(left.norm())


def test_no_weight_is_made_for_a_change_of_two_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = stirred(model(), METHODS["pissa"])
    for _, layer in adapter_of(tuned).layers:
        monkeypatch.setattr(type(layer), "merged", lambda self: pytest.fail("a whole weight was made"))
    assert len(update_norms(tuned)) == 14
