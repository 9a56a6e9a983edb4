"""A few of many equal layers speak for all of them, and only where they may."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from peftcli.models import alike, trace
from peftcli.models.alike import groups_of, listed_layers, passed_by

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "head_dim": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {**SMALL, "intermediate_size": 48, "num_hidden_layers": 14}, "AutoModelForCausalLM"),
    "two kinds of attention": (
        "gemma3_text",
        {**SMALL, "intermediate_size": 48, "num_hidden_layers": 18, "sliding_window_pattern": 6},
        "AutoModelForCausalLM",
    ),
    "experts": (
        "qwen3_moe",
        {**SMALL, "moe_intermediate_size": 16, "num_hidden_layers": 13, "num_experts": 4, "num_experts_per_tok": 2},
        "AutoModelForCausalLM",
    ),
    "encoder and decoder": (
        "t5",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 14, "vocab_size": 64},
        "AutoModelForSeq2SeqLM",
    ),
    "convolutions": ("mamba", {"hidden_size": 32, "num_hidden_layers": 14, "vocab_size": 64}, "AutoModelForCausalLM"),
    "gpt2": ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 14, "vocab_size": 64}, "AutoModelForCausalLM"),
}


def made(family: str) -> nn.Module:
    name, settings, auto_class = FAMILIES[family]
    config = transformers.AutoConfig.for_model(name, **settings)
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, auto_class).from_config(config)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_few_layers_tell_what_all_would(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(family)
    few = trace._traced(model, model.config)
    monkeypatch.setattr(alike, "WORTH_PASSING", 10_000)
    whole = trace._traced(model, model.config)
    assert not whole.by_few
    assert few.known == whole.known
    assert few.idle == whole.idle
    assert (few.uncalled, few.passed_over, few.read) == (whole.uncalled, whole.passed_over, whole.read)


def test_most_families_are_told_by_few() -> None:
    assert [name for name in FAMILIES if not trace._traced(made(name), made(name).config).by_few] == []


def test_layers_of_two_kinds_are_two_groups() -> None:
    layers = list(listed_layers(made("two kinds of attention")).values())
    groups = groups_of(layers)
    assert sorted(place for group in groups for place in group) == list(range(18))
    assert len(groups) == 2
    assert groups[1] == [5, 11, 17]


def test_a_layer_that_is_unlike_the_rest_stands_alone() -> None:
    model = made("llama")
    layers = listed_layers(model)
    layers["model.layers.7"].mlp.act_fn = nn.GELU()
    assert [7] in groups_of(list(layers.values()))


def test_layers_that_are_passed_by_hand_their_input_on() -> None:
    layers = [nn.Linear(4, 4) for _ in range(6)]
    kept = {0, 1}
    x = torch.randn(2, 4)
    with passed_by(layers, groups_of(layers), kept):
        found = x
        for layer in layers:
            found = layer(found)
    assert torch.equal(found, layers[1](layers[0](x)))
    assert all("forward" not in vars(layer) for layer in layers)
