"""HRA: the map is the product of its reflections, and files go to Hugging Face PEFT and come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.documents import CONFIG_NAME, TENSORS_NAME
from peftcli.adapters.methods.hra.config import HraConfig
from peftcli.adapters.methods.hra.method import HraLayer
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError, RecipeError
from peftcli.testing import tiny_model
from peftcli.testing.case import Case, inputs_for, logits

VARIANTS = [{"r": 4}, {"r": 3, "init_weights": False}, {"r": 4, "apply_GS": True, "init_weights": False}]


def layer(fields: dict[str, Any]) -> HraLayer:
    torch.manual_seed(0)
    made = HraLayer(nn.Linear(6, 5), HraConfig.model_validate(fields)).double()
    with torch.no_grad():
        made.hra_u.normal_()
    return made


def reflected(u: Tensor) -> Tensor:
    """H_1 H_2 ... H_r, one after another."""
    whole = torch.eye(len(u), dtype=u.dtype)
    for column in u.T:
        whole = whole - 2 * (whole @ column)[:, None] * column / column.square().sum()
    return whole


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_the_input_goes_through_every_reflection(fields: dict[str, Any]) -> None:
    made = layer(fields)
    u = made.hra_u.detach()
    if made.config.apply_GS:
        columns: list[Tensor] = []
        for column in u.T:
            for earlier in columns:
                column = column - (column @ earlier) * earlier
            columns.append(column / column.norm())
        u = torch.stack(columns, dim=1)
    x, base = torch.randn(7, 6, dtype=torch.float64), made.base_layer
    weight = base.weight @ reflected(u)  # type: ignore[operator]
    expected = x @ weight.T + base.bias  # type: ignore[operator]
    assert torch.allclose(made(x), expected, atol=1e-12, rtol=0)


def test_the_map_keeps_lengths() -> None:
    made = layer({"r": 4})
    directions, mixing = made.factors()
    whole = torch.eye(6, dtype=torch.float64) - directions @ mixing @ directions.T
    assert torch.allclose(whole @ whole.T, torch.eye(6, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("fields", [{"r": 3}, {"r": 4, "apply_GS": True}], ids=str)
def test_a_start_that_cannot_be_the_base_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="init_weights"):
        adapters.attach(tiny_model("llama"), {"type": "hra", **fields})


def test_more_reflections_than_inputs_are_refused() -> None:
    with pytest.raises(AdapterError, match="r = 50 is larger"):
        adapters.attach(tiny_model("llama"), {"type": "hra", "r": 50})


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    adapters.save(Case({"type": "hra", "r": 4}, "llama").trained(), tmp_path)
    document = json.loads((tmp_path / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(json.dumps(document | {"r": 2}))
    with pytest.raises(AdapterError, match="rank 2"):
        adapters.load(tiny_model("llama"), tmp_path)


def to_reference(folder: Path) -> nn.Module:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    found: nn.Module = peft.PeftModel.from_pretrained(tiny_model("llama"), str(folder)).eval()
    return found


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_the_reference_reads_ours(fields: dict[str, Any], tmp_path: Path) -> None:
    model = Case({"type": "hra", "bias": "none", **fields}, "llama").trained()
    adapters.save(model, tmp_path)
    theirs = to_reference(tmp_path)
    inputs = inputs_for(model)
    with adapters.disabled(model):
        effect = float((logits(model, inputs) - logits(theirs, inputs)).abs().max())
    assert effect > 1e-2
    assert float((logits(model, inputs) - logits(theirs, inputs)).abs().max()) < 1e-5 * max(1.0, effect)


@pytest.mark.parametrize("fields", [{"r": 4}, {"r": 3}, {"r": 4, "apply_GS": True}], ids=str)
def test_ours_reads_the_reference(fields: dict[str, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.HRAConfig(target_modules=["q_proj", "down_proj"], bias="hra_only", **fields)
    theirs = peft.get_peft_model(tiny_model("llama"), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.1, generator=generator))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = tiny_model("llama")
    adapters.load(ours, tmp_path / "theirs")
    inputs = inputs_for(ours)
    assert float((logits(ours, inputs) - logits(theirs.eval(), inputs)).abs().max()) < 1e-5
    adapters.save(ours, tmp_path / "again")
    assert (tmp_path / "again" / TENSORS_NAME).read_bytes() == (tmp_path / "theirs" / TENSORS_NAME).read_bytes()
    documents = [json.loads((tmp_path / name / CONFIG_NAME).read_text()) for name in ("theirs", "again")]
    for document in documents:
        document.pop("target_modules"), document.pop("task_type")
    assert documents[0] == documents[1]
    assert adapter_of(ours).config.name == "hra"
