"""Compacter: projections against written-out Kronecker products, sharing, sizes that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peftcli import adapters
from peftcli.adapters.methods.compacter.method import RULE_KEY, CompacterLayer, Projection
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError
from peftcli.testing import Case, tiny_model
from peftcli.testing.case import inputs_for, logits

PLACE = "model.layers.0.mlp.down_proj"


def layer_at(model: nn.Module, path: str) -> CompacterLayer:
    layer = model.get_submodule(path)
    assert isinstance(layer, CompacterLayer)
    return layer


@pytest.mark.parametrize("rank", [1, 3, None])
def test_a_projection_is_a_sum_of_kronecker_products(rank: int | None) -> None:
    model = Case({"type": "compacter", "phm_rank": rank}, "llama", perturb=0.3).trained()
    part: Projection = layer_at(model, PLACE).adapter_down
    own = part.W if rank is None else part.W_left @ part.W_right
    expected = sum(torch.kron(a, b) for a, b in zip(part.phm_rule, own, strict=True))
    assert part.matrix().shape == (32, 8)
    assert torch.allclose(part.matrix(), expected, atol=1e-6)
    x = torch.randn(5, 32)
    assert torch.allclose(part(x), x @ expected + part.b, atol=1e-5)


def test_all_layers_share_one_rule_that_is_saved_once() -> None:
    model = tiny_model("llama")
    summary = adapters.attach(model, "compacter")
    adapter = adapter_of(model)
    rules = {id(module.phm_rule) for module in model.modules() if isinstance(module, Projection)}
    assert len(rules) == 1
    assert [entry.key for entry in adapter.entries() if "phm_rule" in entry.key] == [RULE_KEY]
    # per sublayer: down 32 -> 8 and up 8 -> 32, four products of rank 1; two sublayers in each of two blocks
    sublayer = 4 * (8 + 2) + 8 + 4 * (2 + 8) + 32
    assert summary.trainable == 4**3 + 4 * sublayer


def test_a_fixed_rule_is_saved_but_not_trained() -> None:
    model = tiny_model("llama")
    adapters.attach(model, {"type": "compacter", "learn_phm": False})
    adapter = adapter_of(model)
    assert RULE_KEY in {entry.key for entry in adapter.entries()}
    assert RULE_KEY not in adapter.trainable_parameters()


def test_rules_of_their_own_differ() -> None:
    model = tiny_model("llama")
    adapters.attach(model, {"type": "compacter", "shared_phm_rule": False})
    layer = layer_at(model, PLACE)
    assert not torch.equal(layer.adapter_down.phm_rule, layer.adapter_up.phm_rule)
    assert f"base_model.model.{PLACE}.adapter_up.phm_rule" in adapter_of(model).trainable_parameters()


def test_starts() -> None:
    model = tiny_model("llama")
    plain = logits(model, inputs_for(model))
    adapters.attach(model, "compacter")
    assert torch.equal(logits(model, inputs_for(model)), plain)
    adapters.detach(model)
    adapters.attach(model, {"type": "compacter", "init_weights": "glorot"})
    assert 0 < float((logits(model, inputs_for(model)) - plain).abs().max()) < 1e-3
    assert adapter_of(model).start_differs() is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"phm_dim": 5}, "hidden size 32"),
        ({"reduction_factor": 32}, "reduction_factor: 8"),
        ({"reduction_factor": 3}, "reduction_factor: 4"),
    ],
    ids=["hidden size", "too small", "odd bottleneck"],
)
def test_sizes_that_do_not_divide_are_refused_with_a_way_out(fields: dict[str, Any], message: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(AdapterError, match=message):
        adapters.attach(model, {"type": "compacter", **fields})
    assert not any(isinstance(module, CompacterLayer) for module in model.modules())


def test_compacter_plus_plus_adapts_the_feed_forward_only() -> None:
    summary = adapters.attach(tiny_model("llama"), "compacter_plus_plus")
    assert all(path.endswith("down_proj") for path in summary.targets)
