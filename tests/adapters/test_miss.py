"""MiSS: every stretch of r inputs meets one matrix, and files go to Hugging Face PEFT and come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftcli import adapters
from peftcli.adapters.documents import CONFIG_NAME
from peftcli.adapters.methods.miss.config import MissConfig
from peftcli.adapters.methods.miss.method import BatLayer, MissLayer
from peftcli.errors import AdapterError, RecipeError
from peftcli.testing import tiny_model
from peftcli.testing.case import Case
from tests.adapters.reference import require_it_reads_ours, require_we_read_its

VARIANTS = [{"r": 3}, {"r": 4}, {"r": 4, "init_weights": "mini", "mini_r": 5}]


def layer(fields: dict[str, Any]) -> MissLayer:
    torch.manual_seed(0)
    made = MissLayer(nn.Linear(7, 10), MissConfig.model_validate(fields)).double()
    with torch.no_grad():
        made.miss_block.normal_()
    return made


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_inputs_that_are_r_apart_share_their_weights(fields: dict[str, Any]) -> None:
    made = layer(fields)
    block = made.miss_block.detach()
    change = torch.zeros(10, 7, dtype=torch.float64)
    for output in range(10):
        for place in range(7):
            change[output, place] = block[place % made.config.r, output % block.shape[1]]
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    assert torch.allclose(made(x), made.base_layer(x) + x @ change.T, atol=1e-12, rtol=0)
    left, right = made.low_rank_update()
    assert torch.allclose(left @ right, change, atol=1e-12, rtol=0)
    merged = made.merged()["weight"]
    assert torch.allclose(merged, (made.base_layer.weight + change).float(), atol=1e-6, rtol=0)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"r": 500}, "r = 500 is larger"),
        ({"r": 4, "init_weights": "mini", "mini_r": 7}, "does not divide"),
        ({"r": 4, "mini_r": 2}, "no effect"),
        ({"r": 5, "init_weights": "bat"}, "does not divide"),
        ({"r": 4, "init_weights": "bat", "miss_dropout": 0.1}, "no effect"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises((AdapterError, RecipeError), match=why):
        adapters.attach(tiny_model("llama"), {"type": "miss", **fields})


def test_blocks_are_changed_by_a_multiple_of_themselves() -> None:
    torch.manual_seed(0)
    made = BatLayer(nn.Linear(9, 6), MissConfig.model_validate({"r": 3, "init_weights": "bat"})).double()
    with torch.no_grad():
        made.miss_block.normal_()
    weight, blocks = made.base_layer.weight.detach(), made.miss_block.detach()  # type: ignore[operator, union-attr]
    change = torch.zeros(6, 9, dtype=torch.float64)
    for row in range(2):
        for column in range(3):
            place = (slice(3 * row, 3 * row + 3), slice(3 * column, 3 * column + 3))
            change[place] = (weight[place] + torch.eye(3, dtype=torch.float64)) @ blocks[row]
    x = torch.randn(2, 3, 9, dtype=torch.float64)
    assert torch.allclose(made(x), made.base_layer(x) + x @ change.T, atol=1e-12, rtol=0)
    assert torch.allclose(made.merged()["weight"].double(), weight + change, atol=1e-6, rtol=0)


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    adapters.save(Case({"type": "miss", "r": 4}, "llama").trained(), tmp_path)
    document = json.loads((tmp_path / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(json.dumps(document | {"r": 2}))
    with pytest.raises(AdapterError, match="rank 2"):
        adapters.load(tiny_model("llama"), tmp_path)


REFERENCE = [{"r": 5}, {"r": 4, "init_weights": "mini", "mini_r": 4}, {"r": 4, "init_weights": "bat"}]


@pytest.mark.parametrize("fields", REFERENCE, ids=str)
def test_the_reference_reads_ours(fields: dict[str, Any], tmp_path: Path) -> None:
    require_it_reads_ours({"type": "miss", **fields}, tmp_path)


@pytest.mark.parametrize("fields", REFERENCE, ids=str)
def test_ours_reads_the_reference(fields: dict[str, Any], tmp_path: Path) -> None:
    require_we_read_its("MissConfig", fields, tmp_path)
