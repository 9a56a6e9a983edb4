"""AdaLoRA, VeRA, (IA)^3, LoHa, LoKr and OFT on tiny models: arithmetic against dense formulas, schedules, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.base import InitContext
from peftcli.adapters.methods.adalora.allocation import Schedule
from peftcli.adapters.methods.adalora.config import AdaloraConfig
from peftcli.adapters.methods.lokr.method import factor_pair
from peftcli.adapters.methods.oft.method import nearest_divisor
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError, RecipeError

IDS = torch.arange(4, 24).view(2, 10)
SECTIONS: dict[str, dict[str, Any]] = {
    "adalora": {"type": "adalora", "init_r": 6, "target_r": 3},
    "vera": {"type": "vera", "r": 16},
    "vera_unsaved": {"type": "vera", "r": 16, "save_projection": False, "projection_prng_key": 3},
    "ia3": {"type": "ia3"},
    "ia3_feedforward": {"type": "ia3", "feedforward_modules": ["down_proj"], "target_modules": ["k_proj", "down_proj"]},
    "loha_thin": {"type": "loha", "r": 2},
    "loha_dense": {"type": "loha", "r": 5},
    "lokr": {"type": "lokr", "r": 2},
    "lokr_both": {"type": "lokr", "r": 1, "decompose_both": True, "decompose_factor": 4},
    "oft": {"type": "oft", "oft_block_size": 8},
    "oft_exact": {"type": "oft", "oft_block_size": 8, "use_cayley_neumann": False},
    "oft_shared": {"type": "oft", "r": 4, "oft_block_size": 0, "block_share": True},
}


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
        "attention_bias": True,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes)).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)).eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def disturbed(model: nn.Module, scale: float = 0.1) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(torch.empty(parameter.shape).normal_(0.0, scale, generator=generator))
    return model


def attached(section: dict[str, Any], model: nn.Module | None = None) -> nn.Module:
    model = llama() if model is None else model
    adapters.attach(model, section, context=InitContext(torch.Generator().manual_seed(0)))
    return model


@pytest.mark.parametrize("family", [llama, gpt2])
@pytest.mark.parametrize("name", SECTIONS)
def test_start_merge_and_disk(name: str, family: Any, tmp_path: Path) -> None:
    section = dict(SECTIONS[name])
    if family is gpt2 and name == "ia3_feedforward":
        section |= {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]}
    plain = logits(family())
    model = attached(section, family())
    assert (logits(model) - plain).abs().max() < 1e-6, "starts as the base"
    disturbed(model)
    tuned = logits(model)
    assert (tuned - plain).abs().max() > 1e-4
    adapters.save(model, tmp_path)
    again = family()
    adapters.load(again, tmp_path)
    assert torch.equal(logits(again), tuned)
    adapters.merge(model)
    assert (logits(model) - tuned).abs().max() < 1e-4


# -- AdaLoRA -----------------------------------------------------------------------------------------------------


def train(model: nn.Module, steps: range, total: int, optimizer: Any = None) -> Any:
    adapter = adapter_of(model)
    optimizer = optimizer or torch.optim.AdamW(adapter.parameter_groups(1e-2, 0.0))
    for step in steps:
        loss = model(input_ids=IDS, labels=IDS).loss + adapter.extra_loss()
        loss.backward()
        optimizer.step()
        adapter.after_step(step + 1, total)
        optimizer.zero_grad()
    return optimizer


def test_budget_falls_cubically_between_the_two_ends() -> None:
    schedule = Schedule.of(AdaloraConfig(tinit=4, tfinal=6, total_step=30), 99)
    budgets = [schedule.budget(step, 100, 40) for step in range(30)]
    assert budgets[:5] == [100] * 5
    assert budgets[24:] == [40] * 6
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[14] == int(60 * (1 - 10 / 20) ** 3 + 40)
    assert [schedule.prunes(step) for step in (4, 5, 24, 25)] == [False, True, True, False]


def test_open_times_are_shares_of_the_run() -> None:
    schedule = Schedule.of(AdaloraConfig(), 200)
    assert (schedule.tinit, schedule.tfinal, schedule.total) == (20, 60, 200)


def test_adalora_really_prunes_and_writes_only_what_is_left(tmp_path: Path) -> None:
    section = {"type": "adalora", "init_r": 6, "target_r": 2, "tinit": 1, "tfinal": 2}
    model = attached(section)
    train(model, range(8), 8)
    layers = [layer for _, layer in adapter_of(model).layers]
    left = sum(int(layer.lora_E.count_nonzero()) for layer in layers)
    assert left == 2 * len(layers)
    tuned = logits(model)
    adapters.save(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(len(value) for key, value in tensors.items() if key.endswith("lora_E")) == left
    document = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sum(map(sum, document["rank_pattern"].values())) == left
    assert document["total_step"] == 8
    again = llama()
    adapters.load(again, tmp_path, trainable=True)
    assert (logits(again) - tuned).abs().max() < 1e-6
    train(again, range(2), 2)  # nothing is pruned any more
    assert sum(layer.r for _, layer in adapter_of(again).layers) == left
    other = tmp_path / "again"
    adapters.load(plain := llama(), tmp_path)
    adapters.save(plain, other)
    name = "adapter_model.safetensors"
    assert (other / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_layer_may_lose_every_triplet(tmp_path: Path) -> None:
    model = attached({"type": "adalora", "init_r": 4, "target_r": 1, "tinit": 0, "tfinal": 1})
    adapter = adapter_of(model)
    train(model, range(4), 4)
    path, layer = adapter.layers[0]
    with torch.no_grad():
        adapter.left[path].fill_(False)
        layer.lora_E.zero_()
    tuned = logits(model)
    adapters.save(model, tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors")[f"base_model.model.{path}.lora_B"].shape[1] == 0
    again = llama()
    adapters.load(again, tmp_path, trainable=True)
    assert (logits(again) - tuned).abs().max() < 1e-6
    (again(input_ids=IDS, labels=IDS).loss + adapter_of(again).extra_loss()).backward()
    adapters.merge(again)
    assert (logits(again) - tuned).abs().max() < 1e-5


@pytest.mark.parametrize("cut", [2, 5, 7])
def test_the_schedule_resumes_exactly(cut: int) -> None:
    section = {"type": "adalora", "init_r": 6, "target_r": 2, "tinit": 1, "tfinal": 3}
    straight = attached(section)
    train(straight, range(10), 10)
    first = attached(section)
    optimizer = train(first, range(cut), 10)
    second = llama()
    adapters.attach(second, section, seed=9)
    adapter_of(second).load_state({key: value.clone() for key, value in adapter_of(first).state().items()})
    fresh = torch.optim.AdamW(adapter_of(second).parameter_groups(1e-2, 0.0))
    fresh.load_state_dict(optimizer.state_dict())
    train(second, range(cut, 10), 10, fresh)
    ours, theirs = adapter_of(straight).state(), adapter_of(second).state()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_orthogonality_term() -> None:
    model = attached({"type": "adalora", "init_r": 3, "target_r": 2, "target_modules": ["q_proj"]})
    total = []
    for _, layer in adapter_of(model).layers:
        a, b = layer.lora_A.detach(), layer.lora_B.detach()
        total += [(a @ a.T - torch.eye(3)).norm(), (b.T @ b - torch.eye(3)).norm()]
    expected = 0.5 * torch.stack(total).mean()
    assert torch.allclose(adapter_of(model).extra_loss(), expected)
    silent = attached({"type": "adalora", "orth_reg_weight": 0})
    assert adapter_of(silent).extra_loss() is None


# -- VeRA --------------------------------------------------------------------------------------------------------


def test_vera_shares_one_pair_drawn_from_its_key(tmp_path: Path) -> None:
    model = disturbed(attached(SECTIONS["vera_unsaved"]))
    layers = [layer for _, layer in adapter_of(model).layers]
    assert len({id(layer.shared) for layer in layers}) == 1
    generator = torch.Generator().manual_seed(3)
    a = torch.empty(16, 48).uniform_(-1, 1, generator=generator) * (3.0**0.5 * 2.0**0.5 / 48**0.5)
    assert torch.allclose(layers[0].shared.A, a, atol=1e-6)
    adapters.save(model, tmp_path)
    assert not any(key.startswith("base_model.vera") for key in load_file(tmp_path / "adapter_model.safetensors"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(16 + layer.out_features for layer in layers)
    assert adapter_of(model).layers[0][1].shared.A.dtype == torch.float32


def test_the_shared_pair_moves_with_the_model() -> None:
    model = attached(SECTIONS["vera"]).to(torch.float64)
    shared = adapter_of(model).layers[0][1].shared
    assert shared.A.dtype == torch.float64
    assert all(layer.shared is shared for _, layer in adapter_of(model).layers)


# -- (IA)^3, LoHa, LoKr ------------------------------------------------------------------------------------------


def test_ia3_scales_outputs_with_their_bias_and_inputs_of_feedforward_layers() -> None:
    model = disturbed(attached(SECTIONS["ia3_feedforward"]))
    layers = {path.rsplit(".", 1)[-1]: layer for path, layer in adapter_of(model).layers}
    x = torch.randn(3, 32)
    keys = layers["k_proj"]
    assert torch.allclose(keys(x), keys.ia3_l.flatten() * keys.base_layer(x), atol=1e-6)
    down = layers["down_proj"]
    x = torch.randn(3, 48)
    assert torch.allclose(down(x), down.base_layer(x * down.ia3_l), atol=1e-6)
    assert (keys.ia3_l.shape, down.ia3_l.shape) == ((16, 1), (1, 48))


@pytest.mark.parametrize("name", ["loha_thin", "loha_dense", "lokr", "lokr_both"])
def test_products_without_the_dense_update_equal_it(name: str) -> None:
    model = disturbed(attached(SECTIONS[name]))
    for _, layer in adapter_of(model).layers:
        x = torch.randn(2, 3, layer.in_features)
        expected = layer.base_layer(x) + x @ layer.delta_weight().T
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_factor_pairs() -> None:
    assert [factor_pair(size, -1) for size in (64, 96, 7, 172)] == [(8, 8), (8, 12), (1, 7), (4, 43)]
    assert [factor_pair(size, 8) for size in (64, 32, 172)] == [(8, 8), (8, 4), (4, 43)]


def test_dropouts_act_while_training_only() -> None:
    for section in ({"type": "loha", "r": 2, "rank_dropout": 0.5}, {"type": "lokr", "r": 2, "module_dropout": 0.5}):
        model = disturbed(attached(section))
        assert torch.equal(logits(model), logits(model))
        model.train()
        torch.manual_seed(0)
        assert len({float(logits(model).sum()) for _ in range(8)}) > 1


# -- OFT ---------------------------------------------------------------------------------------------------------


def test_rotations_are_orthogonal() -> None:
    exact = adapter_of(disturbed(attached(SECTIONS["oft_exact"]))).layers[0][1]
    rotation = exact.rotation()
    assert torch.allclose(rotation @ rotation.transpose(1, 2), torch.eye(8).expand_as(rotation), atol=1e-5)
    series = adapter_of(disturbed(attached(SECTIONS["oft"]), 0.01)).layers[0][1].rotation()
    assert torch.allclose(series @ series.transpose(1, 2), torch.eye(8).expand_as(series), atol=1e-4)


def test_rotating_the_input_is_rotating_the_weight() -> None:
    model = disturbed(attached(SECTIONS["oft"]))
    _, layer = adapter_of(model).layers[0]
    x = torch.randn(3, 32)
    blocks = torch.block_diag(*layer.rotation())
    assert torch.allclose(layer(x), layer.base_layer(x @ blocks), atol=1e-5)


def test_constrained_rotations_stay_within_eps() -> None:
    section = {"type": "oft", "oft_block_size": 8, "coft": True, "eps": 0.2, "target_modules": ["q_proj"]}
    model = disturbed(attached(section), 1.0)
    layer = adapter_of(model).layers[0][1]
    limit = 0.2 / 4**0.5
    skew = layer._skew(layer._bounded(layer.oft_R))
    assert skew.flatten(1).norm(dim=1).max() <= limit * 1.001
    model.train()
    model(input_ids=IDS).logits.sum().backward()
    assert layer._skew(layer.oft_R).flatten(1).norm(dim=1).max() <= limit * 1.001, "the optimizer's tensor too"


def test_blocks_take_the_nearest_size_that_divides() -> None:
    assert [nearest_divisor(172, size) for size in (32, 64, 20, 23, 24)] == [43, 43, 4, 4, 43]
    assert [nearest_divisor(60, size) for size in (8, 7)] == [6, 6]
    assert nearest_divisor(30, 32) == 30


# -- loud failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "adalora", "init_r": 17, "target_modules": ["k_proj"]}, "init_r = 17"),
        ({"type": "loha", "r": 17, "target_modules": ["k_proj"]}, "r = 17"),
        ({"type": "oft", "r": 48, "oft_block_size": 0, "target_modules": ["q_proj"]}, "blocks of one"),
        ({"type": "ia3", "target_modules": ["k_proj"], "feedforward_modules": ["down_proj"]}, "no target"),
        ({"type": "vera", "target_modules": ["q_proj", "vproj"]}, "vproj"),
        ({"type": "lokr", "rank_pattern": {"qproj": 1}}, "qproj"),
    ],
)
def test_what_does_not_fit_the_model_is_an_error(section: dict[str, Any], message: str) -> None:
    model = llama()
    with pytest.raises(AdapterError, match=message):
        attached(section, model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "section",
    [
        {"type": "adalora", "target_r": 9, "init_r": 8},
        {"type": "adalora", "tinit": 5, "tfinal": 5, "total_step": 10},
        {"type": "oft", "r": 4},
        {"type": "oft", "r": 0, "oft_block_size": 0},
        {"type": "lokr", "decompose_factor": 0},
        {"type": "ia3", "r": 4},
    ],
)
def test_fields_that_make_no_sense_are_errors(section: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        attached(section)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (SECTIONS["adalora"], "init_r", 5),
        (SECTIONS["loha_thin"], "r", 3),
        (SECTIONS["lokr"], "r", 1),
        (SECTIONS["oft"], "oft_block_size", 4),
        (SECTIONS["vera"], "r", 8),
    ],
)
def test_files_whose_configuration_contradicts_their_tensors(
    section: dict[str, Any], field: str, value: int, tmp_path: Path
) -> None:
    adapters.save(attached(section), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    model = llama()
    with pytest.raises(AdapterError):
        adapters.load(model, tmp_path)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_tensors_of_another_base_are_refused(tmp_path: Path) -> None:
    adapters.save(attached(SECTIONS["ia3"]), tmp_path)
    with pytest.raises(AdapterError):
        adapters.load(llama(hidden_size=64), tmp_path, check_base=False)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path)
    with pytest.raises(AdapterError, match="missing"):
        adapters.load(llama(), tmp_path)


def test_paths_stand_for_rules_that_a_file_has_no_field_for(tmp_path: Path) -> None:
    adapters.save(attached({"type": "ia3", "layers_to_transform": [1]}), tmp_path / "ia3")
    document = json.loads((tmp_path / "ia3" / "adapter_config.json").read_text())
    assert "layers_to_transform" not in document
    assert all(".layers.1." in path for path in document["target_modules"])
    again = llama()
    assert all(".layers.1." in path for path in adapters.load(again, tmp_path / "ia3").targets)
