from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from peftcli.errors import CheckpointError, DeviceError, RecipeError
from peftcli.training.optimizer_config import OptimizerConfig
from peftcli.training.optimizer_state import flatten, parameter_names, unflatten
from peftcli.training.optimizers import build_optimizer, require_optimizer, split_by_decay

PARSE: TypeAdapter[Any] = TypeAdapter(OptimizerConfig)
OPTIMIZERS = [
    {"type": "adamw"},
    {"type": "sgd"},
    {"type": "sgd", "momentum": 0.9},
    {"type": "adafactor"},
    {"type": "lion"},
    {"type": "muon"},
]
if importlib.util.find_spec("pytorch_optimizer") is None:
    OPTIMIZERS.remove({"type": "lion"})
else:
    OPTIMIZERS += [
        {"type": "schedule_free"},
        {"type": "prodigy", "d0": 0.5},
        {"type": "adopt"},
        {"type": "came"},
        {"type": "ademamix"},
        {"type": "adan"},
        {"type": "galore", "rank": 2, "update_proj_gap": 3},
        {"type": "galore", "rank": 2, "projection_type": "left"},
        {"type": "galore"},
        {"type": "apollo", "rank": 2, "update_proj_gap": 7},
        {"type": "apollo", "rank": 2, "scale_type": "tensor", "scale": 16.0},
    ]


def label(config: dict[str, Any]) -> str:
    return "-".join(map(str, config.values()))


def build(config: dict[str, Any], seed: int = 0) -> tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    named = {
        "matrix": nn.Parameter(torch.randn(4, 3, generator=generator)),
        "vector": nn.Parameter(torch.randn(5, generator=generator)),
        "cube": nn.Parameter(torch.randn(2, 2, 2, generator=generator)),
    }
    groups = [{"params": [named["matrix"], named["vector"]]}, {"params": [named["cube"]], "lr": 0.05}]
    if config["type"] == "prodigy":
        del groups[1]["lr"]
    return build_optimizer(PARSE.validate_python(config), groups, learning_rate=0.02), named


def descend(optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        sum(((parameter - 1.0) ** 2).sum() for parameter in named.values()).backward()  # type: ignore[union-attr]
        optimizer.step()


@pytest.mark.parametrize("config", OPTIMIZERS, ids=label)
def test_descends(config: dict[str, Any]) -> None:
    optimizer, named = build(config)
    if config["type"] == "schedule_free":
        optimizer.train()  # type: ignore[attr-defined]
    before = {name: float(((parameter.detach() - 1.0) ** 2).sum()) for name, parameter in named.items()}
    torch.manual_seed(0)  # some draw their projections
    descend(optimizer, named, 800)
    for name, parameter in named.items():
        assert float(((parameter.detach() - 1.0) ** 2).sum()) < 0.5 * before[name], name


@pytest.mark.parametrize("config", OPTIMIZERS, ids=label)
def test_flattened_state_goes_on_exactly(config: dict[str, Any]) -> None:
    optimizer, named = build(config)
    other, other_named = build(config, seed=1)
    if config["type"] == "schedule_free":
        optimizer.train()  # type: ignore[attr-defined]
    descend(optimizer, named, 5)
    tensors, scalars = flatten(optimizer, parameter_names(optimizer, named))
    unflatten(other, parameter_names(other, other_named), tensors, scalars)
    with torch.no_grad():
        for name, parameter in named.items():
            other_named[name].copy_(parameter)
    for each, parameters in ((optimizer, named), (other, other_named)):
        torch.manual_seed(0)  # of what an optimizer draws (random projections); a run's checkpoint holds the generators
        descend(each, parameters, 5)
    for name, parameter in named.items():
        assert torch.equal(parameter, other_named[name]), name


def test_state_of_another_optimizer_is_refused() -> None:
    optimizer, named = build({"type": "adamw"})
    descend(optimizer, named, 1)
    tensors, scalars = flatten(optimizer, parameter_names(optimizer, named))
    names = parameter_names(optimizer, named)
    some = {name: tensor for name, tensor in tensors.items() if name != "vector::exp_avg"}
    with pytest.raises(ValueError, match="8 tensors, not 9"):
        unflatten(optimizer, names, some, scalars)
    with pytest.raises(ValueError, match="no parameter other"):
        unflatten(optimizer, names, {**some, "other::exp_avg": torch.zeros(1)}, scalars)
    with pytest.raises(ValueError, match="1 parameter groups, not 2"):
        unflatten(optimizer, names, tensors, {**scalars, "groups": scalars["groups"][:1]})
    with pytest.raises(ValueError, match="state of SGD, not of AdamW"):
        unflatten(optimizer, names, tensors, {**scalars, "type": "SGD"})


def test_lion_by_hand() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build_optimizer(
        PARSE.validate_python({"type": "lion"}), [{"params": [parameter], "weight_decay": 0.1}], learning_rate=0.01
    )
    for gradient in ([3.0, -1.0], [-1.0, 5.0]):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    first = [1.0 * 0.999 - 0.01, -2.0 * 0.999 + 0.01]
    # momentum after the first step is 0.01 g; then sign(0.9 m + 0.1 g) = (-, +)
    expected = [first[0] * 0.999 + 0.01, first[1] * 0.999 - 0.01]
    assert parameter.tolist() == pytest.approx(expected, abs=1e-6)


def test_muon_takes_matrices_only() -> None:
    optimizer, named = build({"type": "muon"})
    descend(optimizer, named, 1)
    assert "momentum_buffer" in optimizer.state[named["matrix"]]
    assert "exp_avg" in optimizer.state[named["vector"]]
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.02, 0.05]


@pytest.mark.parametrize(("name", "device"), [("schedule_free", "cpu"), ("adamw_8bit", "cuda")])
def test_a_missing_package_is_named(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> Any:
        raise ImportError(package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(DeviceError, match="pip install"):
        require_optimizer(PARSE.validate_python({"type": name}), device=device)


def test_eight_bits_need_a_gpu() -> None:
    with pytest.raises(DeviceError, match="paged_adamw_8bit needs a CUDA GPU"):
        build({"type": "paged_adamw_8bit"})


class Decaying:
    """A tensor of each kind, moved by a gradient of zero: what changes is what decay does."""

    def __init__(self) -> None:
        self.parameters = {
            "matrix": nn.Parameter(torch.ones(3, 4)),
            "bias": nn.Parameter(torch.ones(5)),
            "scalar": nn.Parameter(torch.ones(())),
        }

    def after(self, config: dict[str, Any], steps: int = 4) -> dict[str, float]:
        groups = [{"params": list(self.parameters.values()), "lr": 0.1, "weight_decay": 0.5}]
        split = split_by_decay(groups, lambda parameter: parameter.ndim >= 2)
        optimizer = build_optimizer(PARSE.validate_python(config), split, learning_rate=0.1)
        if config["type"] == "schedule_free":
            optimizer.train()  # type: ignore[attr-defined]
        for _ in range(steps):
            for parameter in self.parameters.values():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        return {name: float(parameter.detach().mean()) for name, parameter in self.parameters.items()}


# without any gradient Prodigy takes no step
@pytest.mark.parametrize("config", [each for each in OPTIMIZERS if each["type"] != "prodigy"], ids=label)
def test_weight_decay_is_of_the_matrices(config: dict[str, Any]) -> None:
    found = Decaying().after(config)
    assert found["matrix"] < 0.99
    assert (found["bias"], found["scalar"]) == (1.0, 1.0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_decay_of_sgd_never_enters_its_momentum(momentum: float) -> None:
    config = {"type": "sgd"} | ({"momentum": momentum} if momentum else {})
    assert Decaying().after(config)["matrix"] == pytest.approx((1 - 0.1 * 0.5) ** 4)


def test_groups_stay_as_they_are_where_nothing_decays() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))], "weight_decay": 0.0}]
    assert split_by_decay(groups, lambda parameter: parameter.ndim >= 2) == groups


def test_one_rate_for_several_is_refused() -> None:
    pytest.importorskip("pytorch_optimizer")
    groups = [{"params": [nn.Parameter(torch.ones(2, 2))], "lr": rate} for rate in (1.0, 0.5)]
    with pytest.raises(RecipeError, match="prodigy takes a single rate"):
        build_optimizer(PARSE.validate_python({"type": "prodigy"}), groups, learning_rate=1.0)


class Opaque:
    """What an optimizer might keep beside tensors."""


def test_a_state_that_cannot_be_kept_whole_stops_the_run() -> None:
    optimizer, named = build({"type": "adamw"})
    descend(optimizer, named, 1)
    optimizer.state[named["matrix"]]["projector"] = Opaque()
    with pytest.raises(CheckpointError, match="keeps projector, a Opaque"):
        flatten(optimizer, parameter_names(optimizer, named))


def test_numbers_of_an_optimizers_own_come_back_before_its_first_step() -> None:
    """`step` of a group is made by the first step of many optimizers: a state put back must not begin at 0."""
    pytest.importorskip("pytorch_optimizer")
    optimizer, named = build({"type": "adopt"})
    descend(optimizer, named, 5)
    other, other_named = build({"type": "adopt"}, seed=1)
    unflatten(other, parameter_names(other, other_named), *flatten(optimizer, parameter_names(optimizer, named)))
    assert [group["step"] for group in other.param_groups] == [5, 5]


@pytest.mark.parametrize("config", OPTIMIZERS, ids=label)
def test_the_state_is_as_large_as_planned(config: dict[str, Any]) -> None:
    section = PARSE.validate_python({**config, **({"rank": 8} if "rank" in config else {})})
    named = {"matrix": nn.Parameter(torch.randn(64, 96))}
    optimizer = build_optimizer(section, [{"params": list(named.values())}], learning_rate=0.01)
    if config["type"] == "schedule_free":
        optimizer.train()  # type: ignore[attr-defined]
    descend(optimizer, named, 2)
    tensors, _ = flatten(optimizer, parameter_names(optimizer, named))
    held = sum(tensor.numel() for tensor in tensors.values()) / named["matrix"].numel()
    assert held <= section.state_size * 1.05 + 0.01
    if config["type"] not in ("adafactor", "came", "galore", "apollo"):  # these keep rows, columns and projections
        assert held >= section.state_size * 0.95
