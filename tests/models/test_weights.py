"""The view of a weight: (out, in) whatever the module stores, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftcli.models.weights import is_adaptable, is_linear, weight_view

MODULES = {
    "linear": nn.Linear(3, 5),
    "without a bias": nn.Linear(3, 5, bias=False),
    "Conv1D": Conv1D(5, 3),
    "half": nn.Linear(3, 5, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_a_linear_map_is_out_times_in(module: nn.Module) -> None:
    view = weight_view(module)
    assert view.shape == (5, 3)
    assert view.dense().shape == (5, 3)
    assert view.dense().dtype == torch.float32
    x = torch.randn(2, 3).to(view.dtype)
    with torch.no_grad():
        wanted = x @ view.dense(view.dtype).T + (0.0 if view.bias is None else view.bias)
        assert torch.allclose(module(x), wanted, atol=1e-2 if view.dtype is torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_what_is_stored_is_read_back(module: nn.Module) -> None:
    view = weight_view(module)
    stored = view.stored(view.dense(view.dtype))
    weight = module.weight
    assert isinstance(weight, Tensor)
    assert torch.equal(stored, weight.detach())


def test_an_embedding_is_rows_times_width() -> None:
    view = weight_view(nn.Embedding(7, 4))
    assert view.shape == (7, 4)
    assert view.bias is None


def test_a_dense_weight_has_no_graph() -> None:
    assert not weight_view(nn.Linear(2, 2)).dense().requires_grad


def test_what_can_be_adapted() -> None:
    found = {
        type(module).__name__: (is_linear(module), is_adaptable(module))
        for module in (nn.Linear(2, 2), Conv1D(2, 2), nn.Embedding(2, 2), nn.LayerNorm(2), nn.Conv2d(2, 2, 1))
    }
    assert found == {
        "Linear": (True, True),
        "Conv1D": (True, True),
        "Embedding": (False, True),
        "LayerNorm": (False, False),
        "Conv2d": (False, False),
    }
