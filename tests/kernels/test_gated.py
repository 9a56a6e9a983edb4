"""The gated product that is computed again: equal to the bit, with less kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from peftcli.kernels.gated import gated_product, plain_gated_product, recipe_of
from peftcli.kernels.low_rank import low_rank_linear, paired
from peftcli.kernels.shadow import Shadows

ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [nn.SiLU(), nn.GELU("tanh"), torch.relu, torch.sigmoid]


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=["silu", "gelu", "relu", "sigmoid"])
def test_gradients_are_right_to_the_last_digits(activation: Callable[[Tensor], Tensor]) -> None:
    inputs = (drawn(3, 4), drawn(3, 4, seed=1))
    assert torch.autograd.gradcheck(lambda gate, up: gated_product(gate, up, activation), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_equals_the_plain_form_to_the_bit(dtype: torch.dtype, needs: tuple[bool, bool]) -> None:
    found = []
    for form in (gated_product, plain_gated_product):
        gate, up = drawn(5, 8, dtype=dtype), drawn(5, 8, dtype=dtype, seed=1)
        gate.requires_grad_(needs[0]), up.requires_grad_(needs[1])
        answer = form(gate, up, nn.SiLU())
        answer.backward(drawn(5, 8, dtype=dtype, seed=2).detach())
        found.append([answer.detach(), *(t.grad for t in (gate, up) if t.grad is not None)])
    assert len(found[0]) == 1 + sum(needs)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_layer_that_reads_the_product_keeps_what_it_is_made_of() -> None:
    gate, up, weight = drawn(40, 8), drawn(40, 8, seed=1), drawn(6, 8, seed=2).detach()
    a, b = drawn(2, 8, seed=3), drawn(6, 2, seed=4)
    kept: dict[int, tuple[int, ...]] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tuple(tensor.shape)
        return tensor

    gradients = []
    for form in (gated_product, plain_gated_product):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            product = form(gate, up, nn.SiLU())
            answer = low_rank_linear(product, weight, None, paired(a, b, 0.5, torch.float64, Shadows()))
        wide = [place for place, shape in kept.items() if shape == (40, 8)]
        assert (len(wide) == 2) == (form is gated_product)
        assert (recipe_of(product) is not None) == (form is gated_product)
        gradients.append(torch.autograd.grad(answer.square().sum(), [gate, up, a, b]))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_a_second_derivative_is_refused() -> None:
    gate = drawn(3, 4)
    answer = gated_product(gate, drawn(3, 4, seed=1), nn.SiLU())
    (first,) = torch.autograd.grad(answer.square().sum(), gate, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
