"""Every kind of wrong weight, planted into a merge, is caught, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_case import LORA, family, llama, rewrite, write_adapter, write_base
from torch import Tensor, nn

from peftcli.adapters.methods.lora.experts import LoraParameter
from peftcli.adapters.methods.lora.linear import LoraLinear
from peftcli.errors import CheckFailed
from peftcli.jobs import merge_whole as merge_job
from peftcli.jobs.merge import merge_adapter

Plant = Callable[[nn.Module], None]
EXPERTS: dict[str, Any] = {
    "type": "lora", "r": 2, "target_modules": ["q_proj"],
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}  # fmt: skip
TOKENS: dict[str, Any] = {"type": "lora", "r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [259, 7]}
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def mixtral_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "mixtral", family("mixtral"))


def in_weight(name: str, change: Callable[[Tensor], None]) -> Plant:
    def plant(model: nn.Module) -> None:
        with torch.no_grad():
            change(model.get_parameter(name))

    return plant


def put(value: float, *place: int) -> Callable[[Tensor], None]:
    def change(tensor: Tensor) -> None:
        tensor[place] = value

    return change


def scaled(factor: float, *place: int) -> Callable[[Tensor], None]:
    def change(tensor: Tensor) -> None:
        tensor[place] *= factor

    return change


PLANTS: dict[str, Plant] = {
    "one row": in_weight(UP, scaled(1.001, 5)),
    "one column": in_weight(UP, lambda tensor: tensor[:, 3].mul_(1.01)),
    "one value": in_weight(UP, put(0.5, 7, 9)),
    "one layer": in_weight(UP, lambda tensor: tensor.mul_(1.001)),
    "rows in another order": in_weight(UP, lambda tensor: tensor.copy_(tensor.roll(1, 0))),
    "one NaN": in_weight(UP, put(float("nan"), 7, 9)),
    "one infinity": in_weight(UP, put(float("inf"), 7, 9)),
    "a weight without an adapter": in_weight("model.norm.weight", put(1.5, 3)),
    "a token that no prompt has": in_weight("model.embed_tokens.weight", put(0.5, 263, 0)),
    "an infinity that no prompt meets": in_weight("model.embed_tokens.weight", put(float("inf"), 263, 0)),
}


def require_caught(adapter: Path, output: Path, words: str) -> None:
    with pytest.raises(CheckFailed) as caught:
        merge_adapter(adapter, output=output)
    assert caught.value.exit_code == 10
    assert words in caught.value.render()
    assert not output.exists()
    assert [path for path in output.parent.iterdir() if path.name.startswith(".tmp")] == []


@pytest.fixture(scope="module")
def plain(llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / "plain", llama_base, LORA)


@pytest.mark.parametrize("what", PLANTS)
def test_planted_after_the_merge_in_memory(
    what: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = merge_job.merge_in_memory

    def merge(model: nn.Module) -> None:
        honest(model)
        PLANTS[what](model)

    monkeypatch.setattr(merge_job, "merge_in_memory", merge)
    require_caught(plain, tmp_path / "m", "could not be proven")


@pytest.mark.parametrize("what", ["one row", "one NaN", "a weight without an adapter", "a token that no prompt has"])
def test_planted_into_the_written_file(what: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = merge_job.write_model

    def write(staging: Any, model: nn.Module, *rest: Any) -> int:
        found = honest(staging, model, *rest)
        rewrite(staging.path, lambda tensors: PLANTS[what](_Named(tensors)))
        return found

    monkeypatch.setattr(merge_job, "write_model", write)
    require_caught(plain, tmp_path / "m", "did not come back from the written folder")


class _Named(nn.Module):
    """Tensors of a file under the names that a model has for them."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.tensors = tensors

    def get_parameter(self, name: str) -> Any:
        return self.tensors[name]


def test_a_layer_that_merges_another_update(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the merge itself computes is compared with the wrapper's forward, not with itself."""
    honest = LoraLinear.delta_weight
    monkeypatch.setattr(LoraLinear, "delta_weight", lambda self: honest(self) * 0.99)
    require_caught(plain, tmp_path / "m", "not what the adapter computes: model.layers.0.self_attn.q_proj")


def test_one_expert_of_many(mixtral_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = write_adapter(tmp_path / "a", mixtral_base, EXPERTS)
    honest = LoraParameter.merged

    def merged(self: LoraParameter) -> dict[str, Tensor]:
        found = honest(self)
        for value in found.values():
            value[2] -= self.delta().detach()[2]
        return found

    monkeypatch.setattr(LoraParameter, "merged", merged)
    require_caught(adapter, tmp_path / "m", "not what the adapter computes: model.layers.0.mlp.experts")


def test_an_expert_in_the_file(mixtral_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = write_adapter(tmp_path / "a", mixtral_base, EXPERTS)
    honest = merge_job.write_model

    def swap(tensors: dict[str, Tensor]) -> None:
        one, other = (f"model.layers.1.block_sparse_moe.experts.{number}.w1.weight" for number in (0, 3))
        tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()

    def write(staging: Any, *rest: Any) -> int:
        found = honest(staging, *rest)
        rewrite(staging.path, swap)
        return found

    monkeypatch.setattr(merge_job, "write_model", write)
    require_caught(adapter, tmp_path / "m", "did not come back from the written folder")


def test_a_trained_token(llama_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = write_adapter(tmp_path / "a", llama_base, TOKENS)
    honest = merge_job.merge_in_memory

    def merge(model: nn.Module) -> None:
        honest(model)
        in_weight("model.embed_tokens.weight", scaled(1.01, 259))(model)

    monkeypatch.setattr(merge_job, "merge_in_memory", merge)
    require_caught(adapter, tmp_path / "m", "model.embed_tokens (1 of its rows)")


def test_an_update_lost_by_rounding(half_base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", half_base, LORA, size=0.0001)
    require_caught(adapter, tmp_path / "m", "rounding to bfloat16 lost the rest")
    found = merge_adapter(adapter, output=tmp_path / "whole", dtype="float32")
    assert found.update_share == pytest.approx(1.0, abs=1e-3)
    assert found.logits_share == pytest.approx(1.0, abs=1e-2)


def test_an_update_of_one_layer_lost_by_rounding(tmp_path: Path) -> None:
    """The weights of one layer are so large that the type has no room for its update; the others keep theirs."""
    model = llama(torch.bfloat16)
    with torch.no_grad():
        model.get_parameter(UP).mul_(1000.0)
    base = write_base(tmp_path / "base", model)
    adapter = write_adapter(tmp_path / "a", base, LORA, size=0.03)
    require_caught(adapter, tmp_path / "m", f"of the update of {UP}")
    assert merge_adapter(adapter, output=tmp_path / "whole", dtype="float32").worst_share == pytest.approx(
        1.0, abs=1e-2
    )


def test_a_folder_with_another_configuration(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights are right, and the model is another: only its answers tell."""
    honest = merge_job.write_model

    def write(staging: Any, *rest: Any) -> int:
        found = honest(staging, *rest)
        config = staging.path / "config.json"
        config.write_text(config.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 20.0'))
        return found

    monkeypatch.setattr(merge_job, "write_model", write)
    require_caught(plain, tmp_path / "m", "drifted most")
