"""LoRA and its variants on tiny models: arithmetic against plain dense formulas, starts, files, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.base import InitContext
from peftcli.adapters.methods.lora.adapter import LoraAdapter
from peftcli.adapters.methods.lora.config import LoraConfig
from peftcli.adapters.methods.lora.dora import RowNorms
from peftcli.adapters.registry import parse_method
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError, MergeError, RecipeError


def llama(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "initializer_range": 0.1,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes)).eval()


IDS = torch.arange(4, 24).view(2, 10)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def loss_of(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS, labels=IDS).loss
    return found


def disturbed(model: nn.Module, scale: float = 0.1) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(torch.empty(parameter.shape).normal_(0.0, scale, generator=generator))
    return model


def attached(section: dict[str, Any], model: nn.Module | None = None, **context: Any) -> nn.Module:
    model = llama() if model is None else model
    given = InitContext(torch.Generator().manual_seed(0), **context)
    adapters.attach(model, {"type": "lora", "r": 4, "lora_alpha": 8, **section}, context=given)
    return model


def data(model: nn.Module) -> dict[str, Any]:
    def batches() -> list[dict[str, Tensor]]:
        return [{"input_ids": IDS + shift, "weights": torch.ones(IDS.shape)} for shift in range(3)]

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
        return found

    return {"batches": batches, "loss": loss}


# -- DoRA --------------------------------------------------------------------------------------------------------


def test_row_norms_by_expansion_equal_the_dense_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1500, 40, generator=generator)
    a, b = torch.randn(6, 40, generator=generator), torch.randn(1500, 6, generator=generator)
    norms = RowNorms()
    for scale in (0.5, 3.0):
        dense = (weight.double() + scale * (b.double() @ a.double())).norm(dim=1)
        assert torch.allclose(norms(weight, a, b, scale).double(), dense, rtol=2e-6)
    with torch.no_grad():
        weight.mul_(2.0)
    dense = (weight.double() + 3.0 * (b.double() @ a.double())).norm(dim=1)
    assert torch.allclose(norms(weight, a, b, 3.0).double(), dense, rtol=2e-6), "a changed weight is measured anew"


def test_row_norms_of_a_half_precision_weight_are_taken_in_float32() -> None:
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = RowNorms()(weight, torch.zeros(2, 32), torch.zeros(64, 2), 1.0)
    assert torch.allclose(found, weight.float().norm(dim=1), rtol=1e-6)


def test_dora_starts_as_the_base_and_its_norm_has_no_gradient() -> None:
    model = attached({"use_dora": True})
    with adapters.disabled(model):
        plain = logits(model)
    assert (logits(model) - plain).abs().max() < 1e-5
    layer = adapter_of(model).layers[0][1]
    disturbed(model)
    x = torch.randn(3, 32)
    ratio = (layer.magnitude / layer.norms()).detach()  # type: ignore[operator]
    update = layer.lora_B @ layer.lora_A * layer.scaling  # type: ignore[operator]
    dense = ratio[:, None].detach() * (layer.base_layer.weight + update)
    assert torch.allclose(layer(x), x @ dense.T, atol=1e-5)
    layer(x).sum().backward()
    expected = torch.autograd.grad((x @ dense.T).sum(), layer.lora_A)[0]
    assert torch.allclose(layer.lora_A.grad, expected, atol=1e-5)  # type: ignore[arg-type]


def test_dora_on_an_embedding_scales_columns_over_the_vocabulary() -> None:
    model = disturbed(attached({"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]}))
    layer = next(layer for path, layer in adapter_of(model).layers if path == "model.embed_tokens")
    weight = layer.base_layer.weight + (layer.lora_embedding_B @ layer.lora_embedding_A).T * layer.scaling
    expected = weight * layer.magnitude / weight.norm(dim=0)
    assert torch.allclose(layer(torch.arange(64)), expected, atol=1e-5)
    tuned = logits(model)
    adapters.merge(model)
    assert (logits(model) - tuned).abs().max() < 1e-5


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_dora_leaves_the_bias_out_of_the_direction(bias: str) -> None:
    section = {"use_dora": True, "bias": bias, "target_modules": ["q_proj"]}
    model = disturbed(attached(section, llama(attention_bias=True)))
    tuned = logits(model)
    path, layer = next((path, layer) for path, layer in adapter_of(model).layers if hasattr(layer, "magnitude"))
    weight = model.get_submodule(path).weight + layer.lora_B @ layer.lora_A * layer.scaling
    current = layer.base_layer(torch.zeros(1, 32))
    x = torch.randn(3, 32)
    expected = x @ (weight * (layer.magnitude / weight.norm(dim=1))[:, None]).T + current
    assert torch.allclose(layer(x), expected, atol=1e-5)
    adapters.merge(model)
    assert (logits(model) - tuned).abs().max() < 1e-5


# -- starts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["pissa", "pissa_niter_8", "olora", "lora_ga"])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_start_that_shifts_the_base_is_the_base_and_is_saved_as_plain_lora(
    how: str, rslora: bool, tmp_path: Path
) -> None:
    model = llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    section = {"init_lora_weights": how, "use_rslora": rslora, "rank_pattern": {"q_proj": 2}}
    attached({**section, "alpha_pattern": {"v_proj": 3}}, model, **data(model))
    tuned = logits(model)
    with adapters.disabled(model):
        plain = logits(model)
    assert (tuned - plain).abs().max() < 1e-5
    layer = adapter_of(model).layers[0][1]
    assert layer.lora_A.abs().max() > 0
    assert layer.lora_B.abs().max() > 0
    disturbed(model, 0.05)
    tuned = logits(model)
    assert (tuned - plain).abs().max() > 1e-2
    adapters.save(model, tmp_path)
    document = json.loads((tmp_path / "adapter_config.json").read_text())
    assert document["init_lora_weights"] is True
    assert document["r"] == 8
    assert document["rank_pattern"] == {"q_proj": 4}
    factor = math.sqrt(2) if rslora else 2
    assert document["lora_alpha"] == pytest.approx(8 * factor)
    assert document["alpha_pattern"]["v_proj"] == pytest.approx(3 * factor)
    again = llama()
    adapters.load(again, tmp_path)
    assert (logits(again) - tuned).abs().max() < 1e-5
    adapters.detach(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_pissa_takes_the_leading_singular_part() -> None:
    model = attached({"init_lora_weights": "pissa", "target_modules": ["q_proj"]})
    layer = adapter_of(model).layers[0][1]
    u, s, vt = torch.linalg.svd(layer.base_layer.weight.detach())
    assert torch.allclose(layer.scaling * layer.lora_B @ layer.lora_A, u[:, :4] * s[:4] @ vt[:4], atol=1e-5)
    near = attached({"init_lora_weights": "pissa_niter_30", "target_modules": ["q_proj"]})
    other = adapter_of(near).layers[0][1]
    assert torch.allclose(other.lora_B @ other.lora_A, layer.lora_B @ layer.lora_A, atol=1e-3)


def test_orthogonal_start_is_the_base_with_neither_half_zero() -> None:
    model = attached({"init_lora_weights": "orthogonal"})
    layer = adapter_of(model).layers[0][1]
    assert (layer.lora_B @ layer.lora_A).abs().max() < 1e-6
    assert layer.lora_B.abs().max() > 0
    with pytest.raises(RecipeError, match="even ranks"):
        attached({"init_lora_weights": "orthogonal", "rank_pattern": {"q_proj": 3}})


def test_eva_takes_the_directions_of_the_inputs() -> None:
    model = llama()
    attached({"init_lora_weights": "eva", "target_modules": ["q_proj", "v_proj"]}, model, **data(model))
    path, layer = adapter_of(model).layers[0]
    assert path.endswith("layers.0.self_attn.q_proj")
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    for shift in range(3):
        model(input_ids=IDS + shift)
    handle.remove()
    _, _, vt = torch.linalg.svd(torch.cat(seen).detach(), full_matrices=False)
    overlap = torch.linalg.svdvals(layer.lora_A.detach() @ vt[:4].T)
    assert overlap.min() > 0.95, "A spans the leading inputs"
    assert layer.lora_B.abs().max() == 0


def test_eva_moves_ranks_and_writes_them(tmp_path: Path) -> None:
    model = llama()
    section = {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}, "target_modules": ["q_proj", "down_proj"]}
    attached(section, model, **data(model))
    adapter = adapter_of(model)
    ranks = {path: layer.r for path, layer in adapter.layers}
    assert sum(ranks.values()) == 16
    assert len(set(ranks.values())) > 1
    assert {layer.scaling for _, layer in adapter.layers} == {2.0}, "the scale stays where a rank moves"
    disturbed(model)
    adapters.save(model, tmp_path)
    again = llama()
    adapters.load(again, tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert {path: layer.r for path, layer in adapter_of(again).layers} == ranks


def test_data_driven_starts_say_when_there_is_no_data() -> None:
    for how in ("eva", "lora_ga"):
        model = llama()
        with pytest.raises(AdapterError, match="no data"):
            attached({"init_lora_weights": how}, model)
        assert logits(model) is not None
        assert not any("lora" in name for name, _ in model.named_modules())


def test_lora_ga_follows_the_gradient() -> None:
    model = llama()
    attached({"init_lora_weights": "lora_ga", "target_modules": ["q_proj"]}, model, **data(model))
    layer = adapter_of(model).layers[0][1]
    plain = llama()
    weight = plain.model.layers[0].self_attn.q_proj.weight
    total = sum(plain(input_ids=IDS + shift, labels=IDS + shift).loss for shift in range(3))
    u, _, vt = torch.linalg.svd(torch.autograd.grad(total, weight)[0])
    assert (torch.nn.functional.normalize(layer.lora_A, dim=1) @ vt[:4].T).detach().svd().S.min() > 0.999
    assert (torch.nn.functional.normalize(layer.lora_B, dim=0).T @ u[:, 4:8]).detach().svd().S.min() > 0.999
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("how", "name"), [("pissa_niter_4", "pissa_niter_4"), ("corda", "CorDA"), ("loftq", "LoftQ")])
def test_files_whose_start_cannot_be_rebuilt_are_refused(how: str, name: str, tmp_path: Path) -> None:
    adapters.save(attached({}), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": how}))
    model = llama()
    with pytest.raises(AdapterError, match=name):
        adapters.load(model, tmp_path)
    assert not any("lora" in key for key, _ in model.named_modules())


# -- LoRA+, LoRA-FA -----------------------------------------------------------------------------------------------


def test_lora_plus_gives_b_a_higher_rate() -> None:
    model = attached({"loraplus_lr_ratio": 16.0})
    groups = adapter_of(model).parameter_groups(1e-3, 0.1)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for key, parameter in adapter_of(model).trainable_parameters().items():
        assert rates[id(parameter)] == pytest.approx(1.6e-2 if "lora_B" in key else 1e-3)
    assert len(rates) == len(adapter_of(model).trainable_parameters())


def test_lora_fa_trains_one_half_and_survives_the_disk(tmp_path: Path) -> None:
    model = attached({"freeze_a": True, "target_modules": ["q_proj", "embed_tokens"]})
    keys = set(adapter_of(model).trainable_parameters())
    assert all("lora_B" in key or "embedding_A" in key for key in keys)
    loss_of(model).backward()
    disturbed(model)
    adapters.save(model, tmp_path)
    document = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "freeze_a" not in document
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sum("lora_A" in key for key in stored) == 2, "the frozen half is in the file"
    again = llama()
    adapters.load(again, tmp_path, trainable=True)
    assert set(adapter_of(again).trainable_parameters()) == keys, "continued, the half stays frozen"
    assert torch.equal(logits(again), logits(model))


# -- loud failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"r": 33}, "larger than"),
        ({"target_modules": ["q_proj", "qproj"]}, "qproj"),
        ({"rank_pattern": {"qproj": 2}}, "qproj"),
        ({"target_modules": ["norm"]}, "cannot adapt"),
        ({"target_modules": []}, "empty"),
        ({"layers_to_transform": [7]}, "7"),
        ({"modules_to_save": ["head"]}, "head"),
        ({"init_lora_weights": "lora_ga", "r": 12}, "singular vectors"),
    ],
)
def test_what_does_not_fit_the_model_is_an_error(section: dict[str, Any], message: str) -> None:
    model = llama()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(AdapterError, match=message):
        attached(section, model, **data(model))
    assert [name for name, _ in model.named_modules()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "section",
    [
        {"use_dora": True, "lora_bias": True},
        {"freeze_a": True, "loraplus_lr_ratio": 4.0},
        {"eva_config": {}},
        {"init_lora_weights": "pisa"},
        {"r": 0},
        {"r": "8"},
        {"lora_alpha": -1},
        {"use_dorra": True},
    ],
)
def test_fields_that_make_no_sense_are_errors(section: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        attached(section)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("dora", "use_dora", True),
        ("rslora", "use_rslora", True),
        ("pissa", "init_lora_weights", "pissa"),
        ("olora", "init_lora_weights", "olora"),
        ("eva", "init_lora_weights", "eva"),
        ("lora-fa", "freeze_a", True),
    ],
)
def test_short_names(name: str, field: str, value: object) -> None:
    config = parse_method({"type": name, "r": 8})
    assert isinstance(config, LoraConfig)
    assert getattr(config, field) == value
    assert config.r == 8


def test_lora_bias_merges_where_there_is_a_bias_and_is_refused_where_not() -> None:
    model = disturbed(attached({"lora_bias": True, "target_modules": ["q_proj"]}, llama(attention_bias=True)))
    tuned = logits(model)
    adapters.merge(model)
    assert (logits(model) - tuned).abs().max() < 1e-5
    model = disturbed(attached({"lora_bias": True}))
    tuned = logits(model)
    with pytest.raises(MergeError, match="bias"):
        adapters.merge(model)
    assert torch.equal(logits(model), tuned)


def test_dropout_follows_the_mode_of_the_model() -> None:
    model = disturbed(attached({"lora_dropout": 0.5}))
    assert torch.equal(logits(model), logits(model)), "attached to a model in evaluation mode"
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_the_run_state_holds_the_frozen_start() -> None:
    first, second = attached({"init_lora_weights": "pissa_niter_2"}), llama()
    adapters.attach(second, {"type": "lora", "r": 4, "lora_alpha": 8, "init_lora_weights": "pissa_niter_2"}, seed=9)
    disturbed(first)
    state = {key: tensor.clone() for key, tensor in adapter_of(first).state().items()}
    assert sum(key.endswith(".lora_A0") for key in state) == 14
    adapter_of(second).load_state(state)
    assert torch.equal(logits(first), logits(second))


def test_adapter_says_what_it_does_otherwise() -> None:
    adapter = adapter_of(attached({"init_lora_weights": False}))
    assert isinstance(adapter, LoraAdapter)
    assert "random" in (adapter.start_differs() or "")
    assert "twice the rank" in (adapter_of(attached({"init_lora_weights": "pissa"})).saved_differently() or "")
