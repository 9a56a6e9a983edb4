"""HRA: the map is the product of its reflections, and files go to Hugging Face PEFT and come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.documents import CONFIG_NAME
from peftcli.adapters.methods.hra.config import HraConfig
from peftcli.adapters.methods.hra.method import HraLayer
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError, RecipeError
from peftcli.testing import tiny_model
from peftcli.testing.case import Case
from tests.adapters.reference import require_it_reads_ours, require_we_read_its

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


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_the_reference_reads_ours(fields: dict[str, Any], tmp_path: Path) -> None:
    require_it_reads_ours({"type": "hra", "bias": "none", **fields}, tmp_path)


@pytest.mark.parametrize("fields", [{"r": 4}, {"r": 3}, {"r": 4, "apply_GS": True}], ids=str)
def test_ours_reads_the_reference(fields: dict[str, Any], tmp_path: Path) -> None:
    ours = require_we_read_its("HRAConfig", {"bias": "hra_only", **fields}, tmp_path)
    assert adapter_of(ours).config.name == "hra"
