"""Bottleneck adapters: each placement against its equation, options one by one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.methods.bottleneck.config import BottleneckConfig
from peftcli.adapters.methods.bottleneck.method import BottleneckLayer
from peftcli.adapters.registry import parse_method
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError, RecipeError
from peftcli.testing import Case, tiny_model
from peftcli.testing.case import inputs_for, logits


def trained(section: Mapping[str, Any], family: str) -> nn.Module:
    return Case(section, family, perturb=0.2).trained()


def watched(model: nn.Module, paths: dict[str, str]) -> dict[str, Tensor]:
    """Name -> output of the module at a path in one pass; `<name>_in` its first input."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output
            found[f"{name}_in"] = args[0] if args else kwargs["hidden_states"]

        return hook

    handles = [
        model.get_submodule(path).register_forward_hook(keep(name), with_kwargs=True) for name, path in paths.items()
    ]
    logits(model, inputs_for(model))
    for handle in handles:
        handle.remove()
    return found


def layer_at(model: nn.Module, path: str) -> BottleneckLayer:
    layer = model.get_submodule(path)
    assert isinstance(layer, BottleneckLayer)
    return layer


def network(layer: BottleneckLayer, z: Tensor, act: Any = F.relu) -> Tensor:
    down, up = layer.adapter_down, layer.adapter_up
    return F.linear(act(F.linear(z, down.weight, down.bias)), up.weight, up.bias)


def test_parallel_reads_the_stream_beside_the_feed_forward() -> None:
    model = trained({"type": "bottleneck"}, "llama")
    path = "model.layers.1.mlp.down_proj"
    seen = watched(model, {"h": f"{path}.base_layer", "out": path, "norm": "model.layers.1.post_attention_layernorm"})
    expected = seen["h"] + 4.0 * network(layer_at(model, path), seen["norm_in"])
    assert torch.allclose(seen["out"], expected, atol=1e-6)


def test_pfeiffer_reads_the_sum() -> None:
    model = trained({"type": "pfeiffer", "reduction_factor": 4}, "llama")
    path = "model.layers.1.mlp.down_proj"
    seen = watched(model, {"h": f"{path}.base_layer", "out": path, "norm": "model.layers.1.post_attention_layernorm"})
    expected = seen["h"] + network(layer_at(model, path), seen["norm_in"] + seen["h"])
    assert torch.allclose(seen["out"], expected, atol=1e-6)


def test_pfeiffer_reads_the_normed_sum_in_post_norm_models() -> None:
    model = trained({"type": "pfeiffer", "reduction_factor": 4}, "bert")
    path = "bert.encoder.layer.1.output.dense"
    names = {"h": f"{path}.base_layer", "out": path, "first": "bert.encoder.layer.1.attention.output.LayerNorm"}
    seen = watched(model, names)
    norm = model.get_submodule("bert.encoder.layer.1.output.LayerNorm")
    expected = seen["h"] + network(layer_at(model, path), norm(seen["first"] + seen["h"]))
    assert torch.allclose(seen["out"], expected, atol=1e-6)


def test_houlsby_reads_the_output_of_both_sublayers() -> None:
    model = trained({"type": "houlsby", "reduction_factor": 4}, "llama")
    for path in ("model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"):
        seen = watched(model, {"h": f"{path}.base_layer", "out": path})
        expected = seen["h"] + network(layer_at(model, path), seen["h"], F.silu)
        assert torch.allclose(seen["out"], expected, atol=1e-6)


@pytest.mark.parametrize("residual_first", [False, True])
def test_the_norm_behind(residual_first: bool) -> None:
    section = {"type": "houlsby", "reduction_factor": 4, "ln_after": True, "adapter_residual_before_ln": residual_first}
    model = trained(section, "llama")
    path = "model.layers.0.mlp.down_proj"
    layer = layer_at(model, path)
    seen = watched(model, {"h": f"{path}.base_layer", "out": path})
    update, norm = network(layer, seen["h"], F.silu), layer.adapter_ln_after
    assert norm is not None
    expected = norm(seen["h"] + update) if residual_first else seen["h"] + norm(update)
    assert torch.allclose(seen["out"], expected, atol=1e-6)
    assert (adapter_of(model).start_differs() is not None) == residual_first


@pytest.mark.parametrize(("scaling", "size"), [("learned", 1), ("channel", 32)])
def test_learned_scales_start_at_one_and_are_trained(scaling: str, size: int) -> None:
    model = tiny_model("llama")
    adapters.attach(model, {"type": "bottleneck", "scaling": scaling})
    layer = layer_at(model, "model.layers.0.mlp.down_proj")
    assert layer.adapter_scaling is not None
    assert torch.equal(layer.adapter_scaling, torch.ones(size))
    assert layer.adapter_scaling.requires_grad


def test_dropout_acts_while_training_only() -> None:
    model = trained({"type": "bottleneck", "dropout": 0.5}, "llama")
    inputs = inputs_for(model)
    assert torch.equal(logits(model, inputs), logits(model, inputs))
    model.train()
    assert not torch.equal(logits(model, inputs), logits(model, inputs))


@pytest.mark.parametrize(
    "change",
    [
        {"reduction_factor": 4},
        {"non_linearity": "tanh"},
        {"scaling": 1.0},
        {"ln_before": True},
        {"bias": False},
        {"placement": "pfeiffer"},
        {"init_weights": "bert"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_changes_something(change: dict[str, Any]) -> None:
    plain, other = trained({"type": "bottleneck"}, "llama"), trained({"type": "bottleneck", **change}, "llama")
    assert not torch.equal(logits(plain, inputs_for(plain)), logits(other, inputs_for(other)))


def test_only_some_blocks() -> None:
    model = tiny_model("llama")
    summary = adapters.attach(model, {"type": "bottleneck", "layers_to_transform": [1]})
    assert summary.targets == ("model.layers.1.mlp.down_proj",)
    adapters.detach(model)
    with pytest.raises(AdapterError, match=r"\[5\]"):
        adapters.attach(model, {"type": "bottleneck", "layers_to_transform": [1, 5]})


def test_modules_to_save_are_trained_and_saved(tmp_path: Path) -> None:
    model = trained({"type": "bottleneck", "modules_to_save": ["classifier"]}, "bert")
    keys = {entry.key for entry in adapter_of(model).entries()}
    assert {"base_model.model.classifier.weight", "base_model.model.classifier.bias"} <= keys
    adapters.save(model, tmp_path / "a")
    again = tiny_model("bert")
    adapters.load(again, tmp_path / "a")
    assert torch.equal(logits(again, inputs_for(again)), logits(model, inputs_for(model)))
    with pytest.raises(AdapterError, match="scorer"):
        adapters.attach(tiny_model("bert"), {"type": "bottleneck", "modules_to_save": ["scorer"]})


def test_a_misfit_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    expected = logits(model, inputs_for(model))
    with pytest.raises(AdapterError, match="matches nothing"):
        adapters.attach(model, {"type": "pfeiffer", "modules_to_save": ["nothing"]})
    assert torch.equal(logits(model, inputs_for(model)), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_idle_field_is_an_error() -> None:
    with pytest.raises(RecipeError, match="ln_after"):
        adapters.attach(tiny_model("llama"), {"type": "bottleneck", "adapter_residual_before_ln": True})


def test_short_names_are_the_papers_sizes_with_rates_of_their_own() -> None:
    pfeiffer, parallel = parse_method("pfeiffer"), parse_method("bottleneck")
    assert isinstance(pfeiffer, BottleneckConfig)
    assert (pfeiffer.reduction_factor, pfeiffer.scaling, pfeiffer.placement) == (16, 1.0, "pfeiffer")
    assert pfeiffer.own_learning_rate() > parallel.own_learning_rate()
